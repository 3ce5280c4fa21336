"""The engine process: builds the engine, then runs its loop until the worker ends it.

Started by `EngineLink` as `python -m batchmill.worker.engine_host.process CONNECTION_FD
COUNTER_FD`. It ends when the worker's end of the socket closes, so it never outlives its worker;
the kernel ends it as well (`die_with_parent.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import NoReturn

import structlog

from batchmill.worker.errors import EngineStartError
from batchmill.worker.logs import configure_logging

from .hosted_engine import HostedEngine, RequestRefused, StepOutput
from .liveness_counter import LivenessCounter
from .messages import (
    AbortRequest,
    AddRequest,
    EngineSpec,
    FromEngine,
    Refused,
    SetDraftCorpus,
    SetPaused,
    Shutdown,
    StartFailed,
    StepReport,
    ToEngine,
    TokensSaved,
)
from .unsaved_tokens import UnsavedTokens

#: Longest wait for a message while there is nothing to compute. The liveness counter moves at least
#: this often.
_IDLE_WAIT_S = 0.1
#: Longest time for preparations before messages are read again.
_PREPARE_S = 0.01
#: Time for messages after which the engine computes a step; each takes at least one message.
_MESSAGES_S = 0.02
_EXIT_FAILURE = 1
_log = structlog.stdlib.get_logger("batchmill.engine_process")


class EngineLoop:
    """Turns messages into requests and steps into reports.

    Invariant: the liveness counter moves once per iteration, idle ones included, and once per
    message. It stands still only during a step, or while the engine is built.
    """

    def __init__(
        self,
        connection: Connection[FromEngine, ToEngine],
        engine: HostedEngine,
        counter: LivenessCounter,
        *,
        checkpoint_tokens: int,
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._counter = counter
        self._paused = False
        self._ended = False
        self._num_adds_seen = 0
        self._refused: list[Refused] = []
        self._ready = engine.describe()
        # A checkpoint is due after so many tokens; meanwhile one step more is computed.
        self._unsaved = UnsavedTokens(checkpoint_tokens + 1 - self._ready.num_steps_ahead)
        self._has_waited = False
        self._num_reports = 0

    def serve(self) -> None:
        """Serve until `Shutdown`, or until the worker is gone (EOFError, OSError)."""
        self._connection.send(self._ready)
        while not self._ended:
            self._counter.advance()
            got_messages = self._take_messages(self._wait_s())
            if self._ended:
                return
            if self._may_step() and not self._unsaved.is_full:
                self._report(self._engine.step())
            elif got_messages:
                self._report(StepOutput())

    def _may_step(self) -> bool:
        return self._engine.has_unfinished() and not self._paused

    def _wait_s(self) -> float:
        """Return how long to wait for messages before the next step."""
        if not self._may_step():
            return self._prepare()
        if not self._unsaved.is_full:
            return 0
        self._has_waited = True
        return _IDLE_WAIT_S

    def _prepare(self) -> float:
        """Use idle time for preparations; return how long to wait for the next message."""
        return _IDLE_WAIT_S if self._engine.prepare(_PREPARE_S) else 0

    def _take_messages(self, wait_s: float) -> bool:
        """Handle the messages that wait, for a bounded time; return whether to report on them."""
        if not self._connection.poll(wait_s):
            return False
        # The intake of one long prompt takes a second: running requests must not wait for many.
        until = time.monotonic() + _MESSAGES_S
        needs_report = False
        while True:
            message = self._connection.recv()
            needs_report = needs_report or not isinstance(message, TokensSaved | SetDraftCorpus)
            self._handle(message)
            self._counter.advance()
            if self._ended or time.monotonic() >= until or not self._connection.poll(0):
                return needs_report

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, AddRequest):
            self._num_adds_seen += 1
            try:
                self._engine.add(message)
            except RequestRefused as refusal:
                self._refused.append(Refused(message.request_id, refusal.code, refusal.message))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # also a panic of a Rust library
                # The engine takes a request as the last step of its intake, so it has not changed.
                _log.exception("intake_failed", request_id=message.request_id)
                text = "the engine failed while it took the request in; see its worker's log"
                self._refused.append(Refused(message.request_id, "internal_error", text))
        elif isinstance(message, AbortRequest):
            self._engine.abort(message.request_id)
            self._unsaved.forget(message.request_id)
        elif isinstance(message, SetDraftCorpus):
            self._engine.set_draft_corpus(message.name, message.outputs)
        elif isinstance(message, TokensSaved):
            self._unsaved.note_saved(message.report_number)
        elif isinstance(message, SetPaused):
            self._paused = message.paused
        elif isinstance(message, Shutdown):
            self._ended = True

    def _report(self, output: StepOutput) -> None:
        self._num_reports += 1
        report = StepReport(
            number=self._num_reports,
            num_adds_seen=self._num_adds_seen,
            load=self._engine.load(),
            drafts=self._engine.drafts(),
            media=self._engine.media_counts(),
            offload=self._engine.offload_counts(),
            at_s=time.monotonic(),
            work=self._engine.take_work(),
            new_outputs=output.new_outputs,
            plan_states=output.plan_states,
            finished=output.finished,
            refused=self._refused,
            has_waited=self._has_waited,
        )
        self._refused = []
        self._has_waited = False
        self._connection.send(report)
        self._unsaved.add(report.number, output.new_outputs, output.finished)


def build_engine(spec: EngineSpec) -> HostedEngine:
    """Build the engine that a spec describes.

    Raises:
        EngineStartError: the model or the configuration cannot work.
    """
    if spec.kind == "stub":
        from .stub_engine import StubConfig, StubEngine

        try:
            return StubEngine(StubConfig(**spec.options))
        except TypeError as error:
            raise EngineStartError(f"BATCHMILL_STUB: {error}") from error
    from .real_engine import build_real_engine

    return build_real_engine(spec)


def main(arguments: list[str]) -> None:
    """Run the engine process.

    Args:
        arguments: descriptors of the connection and of the liveness counter.
    """
    # The worker decides when the engine ends: a Ctrl-C, or a signal to the whole group, must not
    # end it while the worker still gives its jobs back.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[FromEngine, EngineSpec | ToEngine] = Connection(int(arguments[0]))
    counter = LivenessCounter(int(arguments[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        spec = connection.recv()
        assert isinstance(spec, EngineSpec)
        configure_logging(spec.log_level, spec.log_format)
        try:
            engine = build_engine(spec)
        except EngineStartError as error:
            connection.send(StartFailed(str(error), may_retry=error.may_retry))
            _leave(_EXIT_FAILURE if error.may_retry else 0)
        loop = EngineLoop(
            connection,  # type: ignore[arg-type]
            engine,
            counter,
            checkpoint_tokens=spec.checkpoint_tokens,
        )
        try:
            loop.serve()
        except (EOFError, OSError):
            raise
        except Exception:
            # The state of this engine is unknown; a new process starts clean.
            _log.exception("engine_failed")
            _leave(_EXIT_FAILURE)


def _leave(status: int) -> NoReturn:
    """End the process at once: after an error of a GPU, destructors of its libraries may hang."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
