"""Run the GPU kernels' tests on several versions of Triton, without a GPU; print a table of them.

`python tests/bench/triton_versions.py FOLDER [VERSION ...]`, for instance
`python tests/bench/triton_versions.py build/triton 3.6.0 3.7.1 3.8.0 3.9.0`

Each version is installed into FOLDER (0.7 to 1 GB) and precedes the environment's own. Triton 3.6's
interpreter needs a numpy before 2.4, which is installed with it; its compiler works with any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = (
    *(f"tests/kernels/gpu/test_{part}.py" for part in ("attention", "sample", "small_ops")),
    "tests/kernels/ops/test_fp8_cache.py",
    "tests/engine/models/test_decoder_triton.py",
    "tests/engine/execution/test_decode_graphs.py",
    "tests/engine/execution/test_warm_up.py",
)
COMPILED = ("tests/kernels/gpu/test_compiled.py",)
#: Installed with a version, and the options that keep pytest from treating it as an error.
BESIDE = {"3.6": "numpy<2.4"}
IGNORED = "ignore:Conversion of an array:DeprecationWarning"
#: (kernel, shape) whose registers the table shows.
SHOWN = {
    "decode bf16": ("decode_attention_kernel", "Llama-3.1-8B, Qwen3-8B"),
    "decode fp8": ("decode_attention_kernel", "Llama-3.1-8B, fp8 cache"),
    "prefill bf16": ("prefill_attention_kernel", "Llama-3.1-8B, Qwen3-8B"),
    "prefill fp8": ("prefill_attention_kernel", "Llama-3.1-8B, fp8 cache"),
    "sample floor": ("sample_floor_kernel", "vocabulary 151936"),
    "sample tile": ("sample_tile_kernel", "vocabulary 151936"),
}


def environment(folder: Path, version: str) -> dict[str, str]:
    """Install a version unless it is present; return the environment that uses it."""
    target = folder / f"triton-{version}"
    if not target.exists():
        beside = [need for series, need in BESIDE.items() if version.startswith(series)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command = [*pip, "--target", str(target), f"triton=={version}", *beside]
        subprocess.run(command, check=True)
    cache = folder / f"cache-{version}"
    return {**os.environ, "PYTHONPATH": str(target), "TRITON_CACHE_DIR": str(cache)}


def tested(paths: tuple[str, ...], env: dict[str, str]) -> str:
    """Return pytest's last line, with the numbers of passed and failed tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", IGNORED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    return done.stdout.strip().splitlines()[-1].split(" in ")[0].strip("= ")


def compiled(env: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of `kernel_table.py`."""
    command = [sys.executable, str(Path(__file__).with_name("kernel_table.py")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return spills, wgmma, and the registers of the kernels that decide, the last two on sm_90."""
    halves = [row for row in rows if "float32" not in row["shape"]]
    loops = sum(row["num_spills_in_loops"] for row in halves)
    largest = max(row["spill_bytes"] for row in rows)
    on_90 = [row for row in rows if row["arch"] == 90]
    prefills = [r for r in halves if r in on_90 and r["kernel"] == "prefill_attention_kernel"]
    wgmma = sum("HGMMA" in row["matrix_instructions"] for row in prefills)
    shown = [
        str(row["num_registers"])
        for wanted in SHOWN.values()
        for row in on_90
        if (row["kernel"], row["shape"]) == wanted and not row["constants"].get("WINDOW")
    ]
    return [f"{loops} ({largest} B)", f"{wgmma} of {len(prefills)}", *shown]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder in which the versions are installed")
    parser.add_argument("versions", nargs="*", default=["3.6.0", "3.7.1", "3.8.0", "3.9.0"])
    options = parser.parse_args()
    names = ["interpreted", "compiled", "spills in loops (largest outside)", "wgmma", *SHOWN]
    print(f"| Triton | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}", flush=True)
    for version in options.versions:
        env = environment(options.folder.absolute(), version)
        cells = [tested(INTERPRETED, env), tested(COMPILED, env), *summary(compiled(env))]
        print(f"| {version} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
