"""Print figures of the compiled Triton kernels: `python tests/bench/kernel_table.py [--json]`.

Needs Triton and no GPU. Prints one row per kernel, shape and architecture: registers, spills,
shared memory, matrix instruction, asynchronous copies, and the largest error of its op; then the
errors of every op's backends (`kernel_errors.py`). `cpu_kernels.py` and the tests cover matrix
products. Prints Markdown by default. Takes a minute or two; `--arch 90` selects one generation.
With `--stored`, rows come from `tests/kernels/gpu/compiled_rows.jsonl` unless their kernel, tuning
or compiler has changed; `--write` compiles all and writes that file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

ARCHITECTURES = (80, 90, 100)
#: The op that a kernel belongs to; other kernels have their op's name.
_OPS = {
    **dict.fromkeys(("plan_decode", "decode_attention", "merge_decode"), "paged_attention"),
    "prefill_attention": "paged_attention",
    **dict.fromkeys(("write_kv", "apply_rope"), "rope_and_cache"),
    **dict.fromkeys(("sample_floor", "sample_tile", "sample_pick"), "sample"),
}
_DTYPES = {"*fp32": "fp32", "*fp16": "fp16", "*bf16": "bf16"}
Errors = dict[str, dict[str, dict[str, float]]]


#: The variants that are compiled even if they are stored, by number: quick ones.
_ALWAYS_COMPILED = (1, 2)


def compile_row(job: tuple[int, int]) -> dict[str, Any]:
    """Compile the variant with this number for this architecture."""
    from tests.kernels.gpu.compiled_rows import digest
    from tests.kernels.gpu.launches import compile_launch
    from tests.kernels.gpu.shipped_launches import shipped_variants

    arch, number = job
    variant = shipped_variants(arch)[number]
    cache_type = variant.launch.signature.get("k_cache", "*fp32")
    return {
        "digest": digest(variant, arch),
        "kernel": variant.launch.name,
        "shape": variant.label,
        "arch": arch,
        "num_warps": variant.launch.num_warps,
        "constants": dict(variant.launch.constants),
        "dtype": _dtype(variant.launch.signature),
        "kv_bytes": {"*fp8e4nv": 1, "*bf16": 2, "*fp16": 2}.get(cache_type, 4),
        **asdict(compile_launch(variant.launch, arch)),
    }


def _dtype(signature: Mapping[str, str]) -> str:
    """Return the number format of a kernel's results."""
    for name in ("query", "qkv", "x", "key", "out"):
        if signature.get(name) in _DTYPES:
            return _DTYPES[signature[name]]
    return "fp32"


def compile_all(
    architectures: tuple[int, ...], num_processes: int, *, use_stored: bool = False
) -> list[dict[str, Any]]:
    """Compile every shipped variant for every architecture.

    Args:
        architectures: Compute capabilities, such as 90.
        num_processes: Processes that compile.
        use_stored: Take stored rows, except for a few that are compiled to compare.

    Raises:
        RuntimeError: a stored row is not what its kernel compiles to.
    """
    from tests.kernels.gpu.compiled_rows import digest, read_rows
    from tests.kernels.gpu.shipped_launches import shipped_variants

    digests = {
        (arch, number): digest(variant, arch)
        for arch in architectures
        for number, variant in enumerate(shipped_variants(arch))
    }
    stored = read_rows() if use_stored else {}
    jobs = [
        job for job, name in digests.items() if name not in stored or job[1] in _ALWAYS_COMPILED
    ]
    if len(jobs) <= len(architectures) * len(_ALWAYS_COMPILED):  # quicker than further processes
        compiled = {job: compile_row(job) for job in jobs}
    else:
        with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
            compiled = dict(zip(jobs, pool.map(compile_row, jobs, chunksize=4), strict=True))
    for job, row in compiled.items():
        if stored.get(digests[job], row) != row:
            raise RuntimeError(f"stored: {stored[digests[job]]}; compiled: {row}; run --write")
    return [compiled.get(job) or stored[name] for job, name in digests.items()]


def measured_errors() -> Errors:
    """Run `kernel_errors.py` in another process, because it interprets the kernels."""
    command = [sys.executable, str(Path(__file__).with_name("kernel_errors.py"))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"kernel_errors.py failed: {done.stderr[-2000:]}")
    errors: Errors = json.loads(done.stdout)
    return errors


def error_of(row: dict[str, Any], errors: Errors) -> float | None:
    """Return the largest error of a kernel's op in its number format, or None."""
    name = row["kernel"].removesuffix("_kernel")
    if name in ("plan_decode", "quantize_fp8", "gated_activation_fp8"):
        return None  # eight bits are compared number by number, in tests/kernels
    if name == "gated_activation":
        name = "gelu_and_mul" if row["constants"]["IS_GELU"] else "silu_and_mul"
    backends = errors.get(_OPS.get(name, name), {}).get("triton")
    if backends is None:  # compared elsewhere, in tests/kernels
        return None
    return backends.get(row["dtype"], max(backends.values()))


def errors_markdown(errors: Errors) -> str:
    """Format the errors of every op's backends and number formats."""
    lines = [
        "Largest error relative to the largest number, against float64; for `sample` the share of",
        "rows that get another token than from the reference. Backends not listed do not exist.",
        "",
        "| op | backend | fp32 | fp16 | bf16 |",
        "|---|---|---|---|---|",
    ]
    for op, backends in errors.items():
        for backend, by_dtype in backends.items():
            cells = (
                f"{by_dtype[each]:.1e}" if each in by_dtype else "-" for each in _DTYPES.values()
            )
            lines.append(f"| {op} | {backend} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]], errors: Errors) -> str:
    """Format rows as a table, by kernel, shape and architecture."""
    lines = [
        "| kernel | shape | sm | warps | registers | spilled B (in loops) | shared KiB | matrix "
        "| async | max error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["kernel"], row["shape"], row["arch"])):
        matrix = " ".join(f"{name} {count}" for name, count in row["matrix_instructions"].items())
        lines.append(
            f"| {row['kernel'].removesuffix('_kernel')} | {row['shape']} | {row['arch']} "
            f"| {row['num_warps']} | {row['num_registers']} "
            f"| {row['spill_bytes']} ({row['num_spills_in_loops']}) "
            f"| {row['shared_bytes'] / 1024:.1f} | {matrix or '-'} | {row['num_async_copies']} "
            f"| {_cell(error_of(row, errors))} |"
        )
    return "\n".join(lines)


def _cell(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of Markdown")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stored", action="store_true", help="compile only what has changed")
    parser.add_argument("--write", action="store_true", help="write the file of stored rows")
    options = parser.parse_args()
    rows = compile_all(tuple(options.arch), options.processes, use_stored=options.stored)
    if options.write:
        from tests.kernels.gpu.compiled_rows import write_rows

        write_rows(rows)
        return
    if options.json:
        json.dump(rows, sys.stdout)
        return
    errors = measured_errors()
    print(f"{markdown(rows, errors)}\n\n{errors_markdown(errors)}")


if __name__ == "__main__":
    main()
