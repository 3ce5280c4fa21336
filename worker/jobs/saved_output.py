"""Tells the engine how much of its output is saved, so that it runs no further ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from batchmill.worker.engine_host.messages import StepReport, ToEngine, TokensSaved

#: Redis counts as away if writes take longer than this, seconds. A busy machine delays a call for
#: less.
_SLOW_S = 2.0


class Mark(NamedTuple):
    """A report of the engine: which engine since the worker's start, and which of its reports."""

    num_engines: int
    number: int


class SavedOutput:
    """Acknowledges the engine's reports: as saved, or as received while Redis is away.

    The engine computes at most a checkpoint interval and a step beyond what was acknowledged. So a
    worker that is killed loses no more than that, also if its main process had no processor, or was
    stopped. While Redis is away, generation continues, as far as the main process receives it.
    Thread-safe.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        """Take the function that sends messages to the engine; it must not block."""
        self._send = send
        self._lock = threading.Lock()
        self._num_engines = 0
        self._acknowledged = 0
        self._received = Mark(0, 0)
        self._has_failed = False
        self._writing_since: float | None = None

    @property
    def received(self) -> Mark:
        """The last report whose tokens the jobs have received."""
        return self._received

    @property
    def is_redis_away(self) -> bool:
        """Whether the last writes failed, or those under way take too long."""
        since = self._writing_since
        return self._has_failed or (since is not None and time.monotonic() - since > _SLOW_S)

    def note_received(self, report: StepReport) -> None:
        """Note that the jobs have received the tokens of a report."""
        if report.new_outputs:
            self._received = Mark(self._num_engines, report.number)
            self.release_if_redis_is_away()

    def note_saved(self, mark: Mark) -> None:
        """Acknowledge all reports up to one, because their tokens are saved."""
        with self._lock:
            if mark.num_engines == self._num_engines and mark.number > self._acknowledged:
                self._acknowledged = mark.number
                self._send(TokensSaved(mark.number))

    def release_if_redis_is_away(self) -> None:
        """Acknowledge what was received, if Redis is away. Call this at short intervals."""
        if self.is_redis_away:
            self.note_saved(self._received)

    def note_engine_gone(self) -> None:
        """Note that reports come from another engine from now on."""
        with self._lock:
            self._num_engines += 1
            self._acknowledged = 0
            self._received = Mark(self._num_engines, 0)

    def note_writing(self) -> None:
        """Note that a round of writes to Redis begins."""
        self._writing_since = time.monotonic()

    def note_written(self, *, failed: bool) -> None:
        """Note that a round of writes has ended."""
        self._writing_since = None
        self._has_failed = failed
        self.release_if_redis_is_away()
