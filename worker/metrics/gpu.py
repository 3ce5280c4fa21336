"""Memory and use of the worker's GPU, by NVML if its Python bindings and a driver are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from . import worker_series as names
from .gpu_xid import XidErrors
from .series import Reading, gauge

_log = structlog.stdlib.get_logger("batchmill.metrics")


def gpu_source(device: str) -> Callable[[], Iterable[Reading]] | None:
    """Return the source of the figures of the GPU that a worker uses.

    Args:
        device: the setting: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Returns:
        None if it uses none, or if NVML is not there, which the log says.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu" or (visible is not None and not visible.strip()):  # empty hides all GPUs
        return None
    try:
        import pynvml
    except ModuleNotFoundError:
        if device != "auto":
            _log.warning("no_gpu_metrics", reason="the package nvidia-ml-py is not installed")
        return None
    try:
        pynvml.nvmlInit()
        handle, name = _find(pynvml, device)
    except pynvml.NVMLError as error:
        _log.info("no_gpu_metrics", reason=str(error))
        return None
    xids = XidErrors(pynvml, handle, name)
    return lambda: [*_read(pynvml, handle, name), *xids.read()]


def _find(pynvml: Any, device: str) -> tuple[Any, str]:
    """Return NVML's handle of the GPU and the label that names it."""
    index = int(device.partition(":")[2] or 0)
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    place = visible[index].strip() if index < len(visible) else str(index)
    if place.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(place)), place
    return pynvml.nvmlDeviceGetHandleByUUID(place), place


def _read(pynvml: Any, handle: Any, name: str) -> list[Reading]:
    readings = []
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        readings.append(gauge(names.GPU_MEMORY_USED, ((name,), float(memory.used))))
        readings.append(gauge(names.GPU_MEMORY_TOTAL, ((name,), float(memory.total))))
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
        readings.append(gauge(names.GPU_UTILISATION, ((name,), rates.gpu / 100)))
    except pynvml.NVMLError:
        pass  # a slice of a GPU (MIG) has no utilisation of its own
    return readings
