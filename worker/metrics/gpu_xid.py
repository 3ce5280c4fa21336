"""Errors that a GPU's driver reports by their number, the Xid, as NVML's events tell them."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import structlog

from . import worker_series as names
from .series import Reading

_log = structlog.stdlib.get_logger("batchmill.metrics")

#: What to do, by Xid. Source: NVIDIA, "XID Errors", its table of causes and actions.
_PROGRAM: Final = "a program did something that the GPU cannot do: look for the job that failed"
_RESET: Final = "the GPU needs a reset before it computes again"
_REPLACE: Final = "hardware or its connection has failed: drain the host, and have it checked"
_MEMORY: Final = "memory of the GPU has failed: reset it, and watch whether this comes back"
_CAUSES: Final[dict[int, str]] = {
    **dict.fromkeys((13, 31, 43, 45), _PROGRAM),
    **dict.fromkeys((46, 61, 62, 69, 109, 119, 120, 154), _RESET),
    **dict.fromkeys((74, 79, 92), _REPLACE),
    **dict.fromkeys((48, 63, 64, 94, 95), _MEMORY),
}
_UNKNOWN: Final = "see NVIDIA's list of Xid errors"


def cause_of(xid: int) -> str:
    """Return what an error means for whoever runs the worker."""
    return _CAUSES.get(xid, _UNKNOWN)


class XidErrors:
    """Counts the errors of one GPU since the worker began, and logs each when it is read."""

    def __init__(self, pynvml: Any, handle: Any, gpu: str) -> None:
        """Ask for the events; a GPU or a driver without them has none.

        Args:
            pynvml: NVML's bindings.
            handle: NVML's handle of the GPU.
            gpu: Its label.
        """
        self._pynvml, self._gpu = pynvml, gpu
        self._counts: Counter[int] = Counter()
        try:
            self._events = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(
                handle, pynvml.nvmlEventTypeXidCriticalError, self._events
            )
        except pynvml.NVMLError as error:
            _log.info("no_gpu_errors", reason=str(error))
            self._events = None

    def read(self) -> list[Reading]:
        """Return the counts, by Xid; nothing is waited for."""
        while self._events is not None:
            try:
                event = self._pynvml.nvmlEventSetWait_v2(self._events, 0)
            except self._pynvml.NVMLError_Timeout:
                break
            except self._pynvml.NVMLError as error:
                _log.warning("no_gpu_errors", reason=str(error))
                self._events = None
                break
            xid = int(event.eventData)
            self._counts[xid] += 1
            _log.error("gpu_error", gpu=self._gpu, xid=xid, meaning=cause_of(xid))
        samples = [((self._gpu, str(xid)), float(count)) for xid, count in self._counts.items()]
        return [Reading(names.GPU_XID_ERRORS, samples)] if samples else []
