"""The state of the C++ kernels on this machine, for tools that check it; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchmill.kernels.cpu.build import find_built, find_compiler
from batchmill.kernels.cpu.isa import best_isa
from batchmill.kernels.errors import CppBuildError

#: Compiles the kernels ahead of the first start.
BUILD_COMMAND = "python -m batchmill.kernels.cpu.build"


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """The C++ kernels for this CPU: compiled, or what compiling them needs."""

    #: Name of the best instruction set of this CPU that the kernels have code for.
    isa: str
    #: The compiled kernels, or None.
    library: Path | None
    #: Path of a C++ compiler, or None.
    compiler: str | None
    #: Why neither can be used; empty if nothing is wrong.
    error: str = ""


def auto_dtype(*, on_cpu: bool) -> str:
    """Return the dtype that "auto" is: bfloat16 on a GPU, on this CPU the one that is faster.

    The CPU alone decides, not whether the kernels are compiled: a job goes on after its worker has
    got a compiler.
    """
    return "float32" if on_cpu and not best_isa().multiplies_bfloat16 else "bfloat16"


def inspect_cpu_kernels() -> CpuKernels:
    """Look for compiled kernels and for a compiler. Compiles nothing."""
    isa, compiler = best_isa().name, find_compiler()
    try:
        library = find_built(best_isa())
    except CppBuildError as error:
        return CpuKernels(isa, None, compiler, str(error))
    return CpuKernels(isa, library, compiler)
