"""The step profile: its phases are those of a step and add up to it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchmill.kernels.ops.linear import is_packable

PROFILE = Path(__file__).parent / "step_profile.py"


def shares(*arguments: str) -> dict[str, float]:
    """Percent of the time by phase, of a run of the command on the demo model."""
    done = subprocess.run(
        [sys.executable, str(PROFILE), *arguments], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^\| (.+?) \| [\d,]+ \| ([\d.]+)% \|$", done.stdout, re.MULTILINE)
    return {name: float(share) for name, share in rows}


bf16_is_packed = pytest.mark.skipif(
    not is_packable(torch.zeros(64, 64, dtype=torch.bfloat16)),
    reason="this CPU has no instructions for bfloat16: its layers run op by op",
)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "quantization",
    [
        pytest.param((), id="bf16", marks=bf16_is_packed),
        pytest.param(("--quantization", "int8"), id="int8"),
    ],
)
def test_a_decode_step_is_reported_down_to_the_layers(quantization: tuple[str, ...]) -> None:
    found = shares("--batch", "3", "--context", "40", "--steps", "4", *quantization)
    assert found.pop("**step**") == 100
    assert {
        *("schedule", "inputs", "sampling", "update", "text and stop conditions", "outputs"),
        *("model: layers, matrix products", "model: layers, attention"),
        *("model: layers, norms, rotation, cache writes", "model: output head (a matrix product)"),
    } <= found.keys()
    assert sum(found.values()) == pytest.approx(100, abs=1)
    assert found["model: layers, matrix products"] > 5
    assert found["model: output head (a matrix product)"] > 1


@pytest.mark.nightly
def test_layers_that_run_op_by_op_are_reported_as_one() -> None:
    found = shares("--batch", "1", "--context", "8", "--steps", "2", "--dtype", "float16")
    assert found["model: all of it (op by op)"] > 50
    assert not [name for name in found if "layers" in name]
    assert found.pop("**step**") == 100
    assert sum(found.values()) == pytest.approx(100, abs=1)
