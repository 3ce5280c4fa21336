"""Which kind of device an engine will compute on, found without importing torch."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

DeviceType = Literal["cpu", "cuda"]

#: Values of CUDA_VISIBLE_DEVICES by which an operator hides every GPU.
_HIDES_ALL: Final = ("", "-1", "NoDevFiles")


def expected_device_type(
    device: str, environment: Mapping[str, str] = os.environ, folder: Path = Path("/dev")
) -> DeviceType:
    """Return the kind of device that a configuration will lead to.

    A worker's main process has no torch, and has to know the defaults of its engine. For `auto` the
    answer is a GPU exactly if there is one that is not hidden, and torch is not a CPU build: if
    torch cannot use that GPU after all, the engine refuses to start.

    Args:
        device: As in `EngineConfig.device`.
        environment: Has CUDA_VISIBLE_DEVICES if GPUs are hidden on purpose.
        folder: Where the driver puts its device files.
    """
    if device != "auto":
        return "cuda" if device.startswith("cuda") else "cpu"
    has_gpu = visible_gpu(environment, folder) is not None
    return "cuda" if has_gpu and not _is_cpu_build() else "cpu"


def visible_gpu(environment: Mapping[str, str], folder: Path) -> str | None:
    """Return the device file of the first NVIDIA GPU; None if there is none, or all are hidden."""
    if environment.get("CUDA_VISIBLE_DEVICES") in _HIDES_ALL:
        return None
    return min((str(each) for each in folder.glob("nvidia[0-9]*")), default=None)


def _is_cpu_build() -> bool:
    try:
        return "+cpu" in importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return True
