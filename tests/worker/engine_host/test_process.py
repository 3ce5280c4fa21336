"""The loop of the engine process, around a stub engine."""

from __future__ import annotations

import os
import threading
from multiprocessing import Pipe

from batchmill.worker.engine_host.liveness_counter import LivenessCounter
from batchmill.worker.engine_host.messages import AddRequest, Ready, Shutdown, StepReport
from batchmill.worker.engine_host.process import EngineLoop
from batchmill.worker.engine_host.stub_engine import StubConfig, StubEngine

DEADLINE_S = 30.0


class SlowToPrepare(StubEngine):
    """Needs a number of calls until it has prepared everything."""

    def __init__(self, num_calls: int) -> None:
        super().__init__(StubConfig())
        self.num_calls_left = num_calls
        self.is_prepared = threading.Event()

    def prepare(self, timeout_s: float) -> bool:
        """Count one call."""
        assert not self.has_unfinished(), "requests come first"
        self.num_calls_left -= 1
        if self.num_calls_left <= 0:
            self.is_prepared.set()
        return self.is_prepared.is_set()


def test_an_idle_engine_prepares_and_still_takes_messages() -> None:
    ours, theirs = Pipe()
    engine = SlowToPrepare(num_calls=500)
    counter_fd = LivenessCounter.create_file()
    loop = EngineLoop(theirs, engine, LivenessCounter(counter_fd))
    os.close(counter_fd)
    thread = threading.Thread(target=loop.serve, daemon=True)
    thread.start()
    assert isinstance(ours.recv(), Ready)
    ours.send(AddRequest("a", "A prompt.", None, {"max_tokens": 3}))
    finished: list[str] = []
    while not finished:
        assert ours.poll(DEADLINE_S)
        report = ours.recv()
        assert isinstance(report, StepReport)
        finished += [each.request_id for each in report.finished]
    assert finished == ["a"]
    assert engine.is_prepared.wait(DEADLINE_S)
    ours.send(Shutdown())
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
