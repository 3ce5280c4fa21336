"""The loop of the engine process, around a stub engine."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from batchmill.worker.engine_host.liveness_counter import LivenessCounter
from batchmill.worker.engine_host.messages import (
    AbortRequest,
    AddRequest,
    Ready,
    Shutdown,
    StepReport,
    TokensSaved,
)
from batchmill.worker.engine_host.process import EngineLoop
from batchmill.worker.engine_host.stub_engine import StubConfig, StubEngine

DEADLINE_S = 60.0


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


class FailsToTakeIn(StubEngine):
    """Raises what a library raises that an intake calls."""

    def add(self, request: AddRequest) -> None:
        """Queue a request, or raise."""
        if request.request_id == "bug":
            raise ValueError("an unexpected error")
        if request.request_id == "panic":
            raise Panic
        super().add(request)


class Panic(BaseException):
    """Like the exception of a panic in Rust."""


def serve(
    engine: StubEngine, *, checkpoint_tokens: int = 2000
) -> tuple[Connection[Any, Any], threading.Thread]:
    """Serve an engine in a thread; return the worker's end of its connection."""
    ours, theirs = Pipe()
    counter_fd = LivenessCounter.create_file()
    counter = LivenessCounter(counter_fd)
    loop = EngineLoop(theirs, engine, counter, checkpoint_tokens=checkpoint_tokens)
    os.close(counter_fd)
    thread = threading.Thread(target=loop.serve, daemon=True)
    thread.start()
    assert isinstance(ours.recv(), Ready)
    return ours, thread


def test_an_intake_that_fails_ends_only_its_own_request() -> None:
    ours, thread = serve(FailsToTakeIn(StubConfig()))
    for request_id in ("bug", "panic", "good"):
        ours.send(AddRequest(request_id, "A prompt.", None, {"max_tokens": 3}))

    refused: dict[str, str] = {}
    finished: list[str] = []
    while not finished:
        assert ours.poll(DEADLINE_S)
        report = ours.recv()
        refused |= {each.request_id: each.code for each in report.refused}
        finished += [each.request_id for each in report.finished]

    assert refused == {"bug": "internal_error", "panic": "internal_error"}
    assert finished == ["good"]
    ours.send(Shutdown())
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


class SlowToTakeIn(StubEngine):
    """Takes a tenth of a second to take a request in."""

    def add(self, request: AddRequest) -> None:
        """Queue a request, slowly."""
        if request.request_id != "good":
            time.sleep(0.1)
        super().add(request)


def test_running_requests_do_not_wait_for_the_intake_of_all_others() -> None:
    ours, thread = serve(SlowToTakeIn(StubConfig(step_time_s=0)))
    ours.send(AddRequest("good", "A prompt.", None, {"max_tokens": 1000}))
    for number in range(20):
        ours.send(AddRequest(f"slow {number}", "<<refuse>>", None, {"max_tokens": 1}))

    num_tokens_when_refused: list[int] = []
    num_tokens = 0
    while len(num_tokens_when_refused) < 20:
        assert ours.poll(DEADLINE_S)
        report = ours.recv()
        num_tokens += sum(len(tokens) for _, tokens, _, _ in report.new_outputs)
        num_tokens_when_refused += [num_tokens] * len(report.refused)

    assert len(set(num_tokens_when_refused)) == 20, "a step comes after each slow intake"
    ours.send(Shutdown())
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_an_idle_engine_prepares_and_still_takes_messages() -> None:
    engine = SlowToPrepare(num_calls=500)
    ours, thread = serve(engine)
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


class NotSaved:
    """The worker's end of an engine whose tokens are saved only when the test says so."""

    def __init__(self, engine: StubEngine, checkpoint_tokens: int) -> None:
        self.connection, self.thread = serve(engine, checkpoint_tokens=checkpoint_tokens)
        self.num_tokens: dict[str, int] = {}
        self.finished: list[str] = []
        self.has_waited = False
        self.last_report = 0

    def add(self, *request_ids: str, max_tokens: int = 100) -> None:
        for request_id in request_ids:
            params = {"max_tokens": max_tokens}
            self.connection.send(AddRequest(request_id, "A prompt.", None, params))

    def read(self, timeout_s: float) -> bool:
        """Read one report; return False if none comes."""
        if not self.connection.poll(timeout_s):
            return False
        report = self.connection.recv()
        for request_id, token_ids, _, _ in report.new_outputs:
            self.num_tokens[request_id] = self.num_tokens.get(request_id, 0) + len(token_ids)
        self.finished += [each.request_id for each in report.finished]
        self.has_waited = self.has_waited or report.has_waited
        self.last_report = report.number
        return True

    def read_until_it_waits(self) -> dict[str, int]:
        """Read until a request has reached the limit and nothing more comes; count its tokens."""
        while max(self.num_tokens.values(), default=0) % 9 or not self.num_tokens:
            assert self.read(DEADLINE_S)
        while self.read(0.3):
            pass
        return self.num_tokens

    def close(self) -> None:
        self.connection.send(Shutdown())
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def test_an_engine_waits_a_step_after_a_checkpoint_until_its_tokens_are_saved() -> None:
    engine = NotSaved(StubEngine(StubConfig(step_time_s=0)), checkpoint_tokens=8)
    engine.add("a")
    assert engine.read_until_it_waits() == {"a": 9}
    assert not engine.has_waited

    engine.connection.send(TokensSaved(engine.last_report))

    assert engine.read_until_it_waits() == {"a": 18}
    assert engine.has_waited
    engine.close()


def test_a_request_that_nobody_saves_any_more_holds_up_no_other() -> None:
    engine = NotSaved(StubEngine(StubConfig(step_time_s=0)), checkpoint_tokens=8)
    engine.add("aborted")
    engine.read_until_it_waits()
    engine.connection.send(AbortRequest("aborted"))
    while not engine.finished:
        assert engine.read(DEADLINE_S)
    for number in range(30):  # each ends before it has reached the limit
        engine.add(f"short {number}", max_tokens=5)
    while len(engine.finished) < 31:
        assert engine.read(DEADLINE_S)
    engine.close()
