"""Print what the Triton kernels compile to: `python tests/bench/kernel_table.py [--json]`.

Needs Triton and no GPU. One row for each kernel, shape and architecture: registers, spills, shared
memory, matrix instruction, asynchronous copies. Markdown by default, for the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

ARCHITECTURES = (80, 90, 100)


def compile_row(job: tuple[int, int]) -> dict[str, Any]:
    """Compile the variant with this number for this architecture."""
    from batchmill.kernels.triton_aot import compile_launch
    from batchmill.kernels.triton_variants import shipped_variants

    arch, number = job
    variant = shipped_variants(arch)[number]
    cache_type = variant.launch.signature.get("k_cache", "*fp32")
    return {
        "kernel": variant.launch.name,
        "shape": variant.label,
        "arch": arch,
        "num_warps": variant.launch.num_warps,
        "constants": dict(variant.launch.constants),
        "kv_bytes": {"*fp8e4nv": 1, "*bf16": 2, "*fp16": 2}.get(cache_type, 4),
        **asdict(compile_launch(variant.launch, arch)),
    }


def compile_all(architectures: tuple[int, ...], num_processes: int) -> list[dict[str, Any]]:
    """Compile every shipped variant for every architecture."""
    from batchmill.kernels.triton_variants import shipped_variants

    jobs = [(arch, i) for arch in architectures for i in range(len(shipped_variants(arch)))]
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        return list(pool.map(compile_row, jobs, chunksize=4))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table, by kernel, shape and architecture."""
    lines = [
        "| kernel | shape | sm | warps | registers | spilled B | shared KiB | matrix | async |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["kernel"], row["shape"], row["arch"])):
        matrix = " ".join(f"{name} {count}" for name, count in row["matrix_instructions"].items())
        lines.append(
            f"| {row['kernel'].removesuffix('_kernel')} | {row['shape']} | {row['arch']} "
            f"| {row['num_warps']} | {row['num_registers']} | {row['spill_bytes']} "
            f"| {row['shared_bytes'] / 1024:.1f} | {matrix or '-'} | {row['num_async_copies']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of Markdown")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows = compile_all(tuple(options.arch), options.processes)
    json.dump(rows, sys.stdout) if options.json else print(markdown(rows))


if __name__ == "__main__":
    main()
