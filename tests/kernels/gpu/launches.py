"""Record the launches of Triton kernels, compile them without a GPU and read the machine code.

A kernel that spills registers or misses the tensor cores is correct but slow, and no test of its
results shows that. So the tests, which have no GPU, compile the kernels as they are launched for
real models and check the machine code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

#: An instruction of disassembled code, without its predicate and its modifiers.
_OPCODE = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)"
#: A line of disassembled code: its address and its instruction.
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_JUMP = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")
#: Loads and stores of registers that were spilled.
_SPILLS = ("LDL", "STL")
#: Matrix instructions by generation: warp-wide, warp-group-wide (sm_90), tensor-memory (sm_100).
_MATRIX_INSTRUCTIONS = ("UTCHMMA", "UTCQMMA", "HGMMA", "QGMMA", "HMMA")
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch, as the compiler sees it."""

    kernel: Any
    #: Type of each argument by name: "*bf16", "i32", "fp32" or "constexpr".
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    #: Names of arguments known to be multiples of 16.
    aligned: frozenset[str]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return int(self.options["num_warps"])


@dataclass(frozen=True, slots=True)
class CompiledReport:
    """The compiled code of one launch on one architecture."""

    num_registers: int
    #: Bytes of local memory per thread: registers that were spilled.
    spill_bytes: int
    shared_bytes: int
    #: Loads and stores of spilled registers inside innermost loops, where they cost time.
    num_spills_in_loops: int
    #: Number of occurrences of each matrix instruction.
    matrix_instructions: Mapping[str, int]
    #: Most waits for matrix instructions of a warp group in an innermost loop: three or four if the
    #: instructions overlap, twice as many as instructions if each waits for the one before.
    num_matrix_waits_in_a_loop: int
    #: Conversions of single numbers that need an instruction each, of a slow unit.
    num_slow_conversions: int
    #: Asynchronous copies from global to shared memory; without any, nothing is pipelined.
    num_async_copies: int


def record_launches(kernels: Sequence[Any], call: Callable[[], object]) -> list[Launch]:
    """Run `call` and record how it would launch these kernels, without launching them.

    Its tensors must be on the "meta" device: they have a shape and a type, but no data.

    Raises:
        RuntimeError: a kernel was imported under TRITON_INTERPRET=1 and cannot be compiled.
    """
    launches: list[Launch] = []
    with ExitStack() as stack:
        for kernel in kernels:
            if not isinstance(kernel, JITFunction):
                raise RuntimeError(
                    f"{kernel.__name__} was imported under TRITON_INTERPRET=1: unset it before "
                    "batchmill.kernels is imported"
                )
            stack.enter_context(_recorded(kernel, launches))
        call()
    return launches


@contextmanager
def _recorded(kernel: Any, launches: list[Launch]) -> Iterator[None]:
    def record(*args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_describe(kernel, args, kwargs))

    kernel.run = record  # shadows the method for this instance
    try:
        yield
    finally:
        del kernel.run


def _describe(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Specialise arguments as Triton does: 1 is a constant, multiples of 16 are marked."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
    options = {name: value for name, value in kwargs.items() if name not in values}
    signature, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or (_specialised(parameter, value) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.add(name)
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and _specialised(parameter, value):
                aligned.add(name)
        else:
            signature[name] = "fp32"
    return Launch(kernel, signature, constants, frozenset(aligned), options)


def _specialised(parameter: Any, value: object) -> bool:
    return isinstance(value, int) and not parameter.do_not_specialize


def compile_launch(launch: Launch, arch: int) -> CompiledReport:
    """Compile for compute capability `arch` (80, 90, 100); no GPU or driver is needed.

    Raises:
        RuntimeError: the disassembler failed, or its output has an unknown format.
    """
    places = {name: place for place, name in enumerate(launch.signature)}
    compiled = triton.compile(
        ASTSource(
            launch.kernel,
            dict(launch.signature),
            dict(launch.constants),
            {(places[name],): [["tt.divisibility", 16]] for name in sorted(launch.aligned)},
        ),
        target=GPUTarget("cuda", arch, 32),
        options=dict(launch.options),
    )
    return _read_cubin(compiled.asm["cubin"], compiled.metadata.shared)


def _read_cubin(cubin: bytes, shared_bytes: int) -> CompiledReport:
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _run(cuobjdump, "-res-usage", path)
        code = _run(cuobjdump, "-sass", path)
    families = re.findall(_OPCODE, code, re.MULTILINE)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None or not families:
        raise RuntimeError(f"{cuobjdump} printed no resource usage or no code: {usage[:200]}")
    return CompiledReport(
        num_registers=int(found[1]),
        spill_bytes=int(found[2]),
        num_spills_in_loops=spills_in_loops(code),
        shared_bytes=shared_bytes,
        matrix_instructions={
            name: families.count(name) for name in _MATRIX_INSTRUCTIONS if name in families
        },
        num_matrix_waits_in_a_loop=max(
            (loop.count("WARPGROUP") for loop in innermost_loops(code)), default=0
        ),
        num_slow_conversions=families.count("F2F"),
        num_async_copies=sum(families.count(name) for name in ("LDGSTS", "UTMALDG")),
    )


def innermost_loops(code: str) -> list[list[str]]:
    """Return the opcodes of each loop that contains no other loop.

    Args:
        code: Output of the disassembler.
    """
    lines = [(int(address, 16), text) for address, text in _INSTRUCTION.findall(code)]
    jumps = [(int(to[1], 16), at) for at, text in lines if (to := _JUMP.search(text))]
    loops = {(first, last) for first, last in jumps if first < last}
    innermost = [
        (first, last)
        for first, last in loops
        if not any(
            first <= other[0] and other[1] <= last and other != (first, last) for other in loops
        )
    ]
    return [
        [_opcode(text) for at, text in lines if first <= at <= last] for first, last in innermost
    ]


def _opcode(instruction: str) -> str:
    """Return an instruction's opcode without its predicate and its modifiers."""
    words = instruction.split()
    return words[words[0].startswith("@")].split(".")[0]


def spills_in_loops(code: str) -> int:
    """Count the loads and stores of spilled registers in loops that contain no other loop.

    A value that is kept in memory across a loop costs nothing; newer assemblers do that so that
    more programs can be resident.

    Args:
        code: Output of the disassembler.
    """
    return sum(opcode in _SPILLS for loop in innermost_loops(code) for opcode in loop)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
    return done.stdout
