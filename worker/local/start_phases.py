"""What a starting worker is doing, read from its log: compiling, converting, loading."""

from __future__ import annotations

import time
from typing import Any

from .child_log import ChildLog, read_events

_FIRST = "starting the worker"
#: Phases that begin with an event of the worker itself; the engine's own events name theirs.
_PHASES = {"engine_started": "starting the engine"}


class StartPhases:
    """The phase of a start, and for how long it has lasted."""

    def __init__(self, log: ChildLog) -> None:
        """Follow a worker's log from where it is now."""
        self._log = log
        self._since_s = time.monotonic()
        self.phase = _FIRST

    def update(self) -> str:
        """Read what is new in the log and return the phase."""
        for event in read_events(self._log.new_lines()):
            phase = _phase_of(event)
            if phase is not None and phase != self.phase:
                if phase.partition(":")[0] != self.phase.partition(":")[0]:
                    self._since_s = time.monotonic()
                self.phase = phase
        return self.phase

    @property
    def line(self) -> str:
        """The phase with the seconds since it began."""
        return f"{self.phase} ({time.monotonic() - self._since_s:.0f} s)"


def _phase_of(event: dict[str, Any]) -> str | None:
    phase = event.get("phase")
    return str(phase) if phase else _PHASES.get(str(event.get("event")))
