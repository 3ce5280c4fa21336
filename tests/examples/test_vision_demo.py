"""The example that trains a model on drawings gets answers that follow the picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..structure.public_interface import ROOT


@pytest.mark.nightly
def test_the_model_that_it_trains_names_what_it_sees(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "vision_demo.py"), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    (num_right, num_all) = re.findall(r"^(\d+) of (\d+) answers", done.stdout, re.MULTILINE)[0]
    # Guesses would name one of 18 right.
    assert int(num_right) >= int(num_all) // 2, done.stdout
    assert (tmp_path / "model" / "trained_tower.bin").stat().st_size < 1_000_000
