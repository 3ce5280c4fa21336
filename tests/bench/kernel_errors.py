"""Largest error of every op's backends against float64: `python tests/bench/kernel_errors.py`.

JSON. Without a GPU the Triton kernels run in Triton's interpreter. It truncates to bfloat16 and a
GPU rounds, so a GPU's errors in bfloat16 are about half of those printed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_correctness import OPS, equal_tokens
from gpu_report import Bench

from batchmill.kernels.cpu.library import cpp_is_usable
from batchmill.kernels.ops.dispatch import Backend

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BACKENDS: tuple[Backend, ...] = ("reference", "cpp", "triton")
SAMPLE_BACKENDS: tuple[Backend, ...] = ("numpy", "cpp", "triton")


def kernel_errors() -> dict[str, dict[str, dict[str, float]]]:
    """Return the largest errors by op, backend and number format.

    Backends that an op or this machine does not have are left out. For `sample` the number is the
    share of rows that get another token than from the reference.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, True, None, float("inf"), section_deadline_s=float("inf"))
    backends = [
        each for each in BACKENDS if each != "cpp" or (device.type == "cpu" and cpp_is_usable())
    ]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for op, errors in OPS.items():
        found[op] = {
            backend: {name: max(errors(bench, dtype, backend)) for name, dtype in DTYPES.items()}
            for backend in backends
            if (op, backend) != ("gelu_and_mul", "cpp")
        }
    found["sample"] = {
        backend: {"fp32": 1 - equal_tokens(bench, backend)[0]}
        for backend in SAMPLE_BACKENDS
        if backend in backends or (backend == "numpy" and device.type == "cpu")
    }
    return found


if __name__ == "__main__":
    json.dump(kernel_errors(), sys.stdout)
