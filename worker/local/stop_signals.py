"""Turns signals such as SIGTERM into a flag that a main loop can wait for."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """While entered, the signals set a flag instead of ending the process.

    A signal that is ignored stays ignored, so that `nohup` still protects from SIGHUP.
    """

    def __init__(self, numbers: Sequence[signal.Signals], on_second: Callable[[], None]) -> None:
        """Bind to signals; nothing changes before this is entered.

        Args:
            numbers: the signals.
            on_second: called in the signal handler if another signal comes after the first.
        """
        self._numbers = numbers
        self._on_second = on_second
        self._received = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received

    def wait(self, seconds: float) -> bool:
        """Wait, unless a signal has come, and return whether one has."""
        if not self._received:
            time.sleep(seconds)
        return self._received

    def __enter__(self) -> StopSignals:
        for number in self._numbers:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A plain attribute: the handler runs in the main thread, between any two of its
        # instructions, and would wait forever for a lock that this thread holds.
        if self._received:
            self._on_second()
        self._received = True
