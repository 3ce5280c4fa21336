"""Defaults of a configuration that depend on the kind of device, found without torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from batchmill.engine import EngineConfig
from batchmill.engine.device_type import expected_device_type


def limits(config: EngineConfig) -> tuple[int, int, int]:
    return config.max_num_seqs, config.max_num_batched_tokens, config.block_size


def test_a_gpu_and_a_cpu_have_their_own_defaults() -> None:
    assert limits(EngineConfig(model="demo", device="cpu")) == (64, 2048, 16)
    assert limits(EngineConfig(model="demo", device="cuda:1")) == (256, 8192, 64)


def test_given_values_count_on_any_device() -> None:
    given = EngineConfig(model="demo", device="cuda", max_num_seqs=8, block_size=16)
    assert limits(given) == (8, 8192, 16)


@pytest.mark.parametrize(
    ("torch_version", "visible", "expected"),
    [
        ("2.13.0", None, "cuda"),
        ("2.13.0", "1", "cuda"),
        ("2.13.0", "", "cpu"),
        ("2.13.0", "-1", "cpu"),
        ("2.13.0+cpu", None, "cpu"),
    ],
)
def test_auto_expects_a_gpu_only_if_torch_can_use_it(
    torch_version: str,
    visible: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: torch_version)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert expected_device_type("auto", environment, tmp_path) == expected


def test_a_machine_without_a_gpu_computes_on_the_cpu(tmp_path: Path) -> None:
    assert expected_device_type("auto", {}, tmp_path) == "cpu"


def test_a_configuration_needs_no_torch() -> None:
    program = (
        "import sys; from batchmill.engine import EngineConfig; "
        "EngineConfig(model='demo'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
