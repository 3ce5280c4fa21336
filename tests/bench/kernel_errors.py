"""Largest error of every op's faces against float64: `python tests/bench/kernel_errors.py`.

JSON. The Triton faces run in its interpreter where there is no GPU. That truncates to bfloat16
where a GPU rounds, so errors in bfloat16 on a GPU are about half of what it gives.
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
FACES: tuple[Backend, ...] = ("reference", "cpp", "triton")
SAMPLE_FACES: tuple[Backend, ...] = ("numpy", "cpp", "triton")


def kernel_errors() -> dict[str, dict[str, dict[str, float]]]:
    """By op, face and number format; a face that an op or this machine does not have is left out.

    For `sample` it is the share of rows that draw another token than the reference.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, True, None, float("inf"), section_deadline_s=float("inf"))
    faces = [each for each in FACES if each != "cpp" or (device.type == "cpu" and cpp_is_usable())]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for op, errors in OPS.items():
        found[op] = {
            face: {name: max(errors(bench, dtype, face)) for name, dtype in DTYPES.items()}
            for face in faces
            if (op, face) != ("gelu_and_mul", "cpp")
        }
    found["sample"] = {
        face: {"fp32": 1 - equal_tokens(bench, face)[0]}
        for face in SAMPLE_FACES
        if face in faces or (face == "numpy" and device.type == "cpu")
    }
    return found


if __name__ == "__main__":
    json.dump(kernel_errors(), sys.stdout)
