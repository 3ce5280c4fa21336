"""A GPU that torch cannot use is reported, and never replaced by the CPU without a word."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from batchmill.engine.errors import ConfigError
from batchmill.engine.gpus import UnusableGpu, find_unusable_gpu, point_triton_to_libcuda
from batchmill.engine.loading import load_options
from batchmill.engine.loading.load_options import resolve_device


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Device files as the driver makes them for two GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_gpu_without_a_fitting_torch_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = find_unusable_gpu({}, folder)
    assert found is not None
    assert found.path.endswith("/nvidia0")
    assert found.is_cpu_build
    assert "built for CPUs only" in found.reason


def test_what_the_driver_says_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system\nis too old (found version 11040)")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    found = find_unusable_gpu({}, folder)
    assert found is not None
    assert not found.is_cpu_build
    assert "CUDA 13.0" in found.reason
    assert "system is too old" in found.reason


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_no_problem(hidden: str, folder: Path) -> None:
    assert find_unusable_gpu({"CUDA_VISIBLE_DEVICES": hidden}, folder) is None


def test_a_machine_without_a_gpu_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert find_unusable_gpu({}, tmp_path) is None


def test_auto_refuses_to_leave_a_gpu_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = UnusableGpu("/dev/nvidia0", "the driver is too old", is_cpu_build=False)
    monkeypatch.setattr(load_options, "find_unusable_gpu", lambda: gpu)
    with pytest.raises(ConfigError, match=r"/dev/nvidia0.*too old.*BATCHMILL_DEVICE=cpu"):
        resolve_device("auto")
    assert resolve_device("cpu").type == "cpu"


def test_auto_warns_if_torch_was_built_for_cpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = UnusableGpu("/dev/nvidia0", "torch is built for CPUs only", is_cpu_build=True)
    monkeypatch.setattr(load_options, "find_unusable_gpu", lambda: gpu)
    with caplog.at_level(logging.WARNING):
        assert resolve_device("auto").type == "cpu"
    assert "/dev/nvidia0" in caplog.text


@pytest.mark.parametrize("has_link", [False, True])
def test_triton_is_told_where_the_drivers_library_is_that_is_loaded(
    has_link: bool, tmp_path: Path
) -> None:
    driver, maps = tmp_path / "driver 1", tmp_path / "maps"
    driver.mkdir()
    if has_link:
        (driver / "libcuda.so.1").touch()
    maps.write_text(
        "7f00-7f01 rw-p 00000000 00:00 0 \n"
        "7f01-7f02 r-xp 00000000 08:01 11 /lib/libcudart.so.13\n"
        f"7f02-7f03 r-xp 00000000 08:01 12 {driver}/libcuda.so.580.65\n"
    )
    environment: dict[str, str] = {}
    point_triton_to_libcuda(environment, maps)
    assert environment == ({"TRITON_LIBCUDA_PATH": str(driver)} if has_link else {})


def test_triton_is_told_nothing_else(tmp_path: Path) -> None:
    given, empty = {"TRITON_LIBCUDA_PATH": "/given"}, dict[str, str]()
    maps = tmp_path / "maps"
    point_triton_to_libcuda(empty, maps)
    maps.write_text("7f02-7f03 r-xp 00000000 08:01 12 /lib/libc.so.6\n")
    point_triton_to_libcuda(empty, maps)
    maps.write_text(f"7f02-7f03 r-xp 00000000 08:01 12 {tmp_path}/libcuda.so.1\n")
    (tmp_path / "libcuda.so.1").touch()
    point_triton_to_libcuda(given, maps)
    assert (given, empty) == ({"TRITON_LIBCUDA_PATH": "/given"}, {})
