"""Errors of a GPU by their Xid, with NVML's bindings as nvidia-ml-py has them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batchmill.worker.metrics.gpu_xid import XidErrors, cause_of
from batchmill.worker.metrics.worker_series import GPU_XID_ERRORS


class NVMLError(Exception):
    pass


class NVMLErrorTimeout(NVMLError):
    pass


class Nvml(SimpleNamespace):
    """A driver with a queue of events."""

    NVMLError, NVMLError_Timeout = NVMLError, NVMLErrorTimeout
    nvmlEventTypeXidCriticalError = 8

    def __init__(self, *, has_events: bool = True) -> None:
        super().__init__(has_events=has_events, queue=[], asked=[], failure=None)

    def nvmlEventSetCreate(self) -> str:
        if not self.has_events:
            raise NVMLError("Not Supported")
        return "events"

    def nvmlDeviceRegisterEvents(self, *arguments: object) -> None:
        self.asked.append(arguments)

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:
        assert (events, timeout_ms) == ("events", 0)
        if self.failure is not None:
            raise self.failure
        if not self.queue:
            raise NVMLErrorTimeout
        return SimpleNamespace(eventData=self.queue.pop(0))


def counts(errors: XidErrors) -> dict[tuple[str, ...], float]:
    readings = errors.read()
    assert all(reading.series is GPU_XID_ERRORS for reading in readings)
    found: dict[tuple[str, ...], float] = {}
    for reading in readings:
        for labels, value in reading.samples:
            assert isinstance(value, float)
            found[labels] = value
    return found


def test_errors_are_counted_by_their_number() -> None:
    nvml = Nvml()
    errors = XidErrors(nvml, "handle", "0")
    assert nvml.asked == [("handle", 8, "events")]
    assert counts(errors) == {}
    nvml.queue = [79, 31, 31]
    assert counts(errors) == {("0", "79"): 1.0, ("0", "31"): 2.0}
    nvml.queue = [31]
    assert counts(errors) == {("0", "79"): 1.0, ("0", "31"): 3.0}


@pytest.mark.parametrize("has_events", [False, True])
def test_a_driver_without_events_has_no_counts(has_events: bool) -> None:
    nvml = Nvml(has_events=has_events)
    errors = XidErrors(nvml, "handle", "0")
    nvml.queue, nvml.failure = [79], NVMLError("GPU is lost")
    assert counts(errors) == {}
    nvml.failure = None
    assert counts(errors) == {}, "it is not asked again"


def test_each_error_says_what_to_do() -> None:
    assert "the job that failed" in cause_of(31)
    assert "drain the host" in cause_of(79)
    assert "memory of the GPU" in cause_of(48)
    assert "NVIDIA's list" in cause_of(999)
