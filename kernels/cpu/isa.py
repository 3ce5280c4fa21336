"""The instruction sets that the C++ kernels are compiled for, and the CPU's support of them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Isa:
    """One instruction set.

    Attributes:
        name: Used in messages and file names.
        cpu_flags: Features that a CPU must report, by their names in Linux.
        flags: Options for the compiler.
        multiplies_bfloat16: Whether it has instructions for products of bfloat16. Without them the
            kernels multiply float32 only.
    """

    name: str
    cpu_flags: frozenset[str]
    flags: tuple[str, ...]
    multiplies_bfloat16: bool = False


_AVX2_CPU = frozenset({"avx2", "fma", "f16c"})
_AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
_AVX512_CPU = _AVX2_CPU | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AVX512_FLAGS = (*_AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")

_X86_64 = ("x86_64", "AMD64")

#: Best first; the last runs on every CPU of any architecture, the others are for x86-64.
ISAS = (
    Isa(
        "avx512_bf16",
        _AVX512_CPU | {"avx512_bf16", "avx512_vnni"},
        (*_AVX512_FLAGS, "-mavx512bf16", "-mavx512vnni"),
        multiplies_bfloat16=True,
    ),
    Isa("avx512_vnni", _AVX512_CPU | {"avx512_vnni"}, (*_AVX512_FLAGS, "-mavx512vnni")),
    Isa("avx512", _AVX512_CPU, _AVX512_FLAGS),
    Isa("avx_vnni", _AVX2_CPU | {"avx_vnni"}, (*_AVX2_FLAGS, "-mavxvnni")),
    Isa("avx2", _AVX2_CPU, _AVX2_FLAGS),
    Isa("baseline", frozenset(), ()),
)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the CPU's features that its system supports; empty if Linux does not list them."""
    if platform.machine() not in _X86_64:
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def isas_of_architecture() -> tuple[Isa, ...]:
    """Return the instruction sets that a CPU of this architecture may have, best first."""
    return ISAS if platform.machine() in _X86_64 else ISAS[-1:]


def supported_isas() -> tuple[Isa, ...]:
    """Return the instruction sets that this CPU has, best first."""
    return tuple(isa for isa in ISAS if isa.cpu_flags <= cpu_flags())


def best_isa() -> Isa:
    """Return the best instruction set that this CPU has."""
    return supported_isas()[0]
