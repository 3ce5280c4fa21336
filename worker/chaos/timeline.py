"""The times of a run's faults, and of every start of a program that had ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .plan import PlannedFault


def now_ms() -> int:
    """Return the Unix time in ms, by which records and logs go."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Happening:
    """A fault, or the start of a program."""

    #: Kind of the fault, or `start`.
    what: str
    #: The program that it happened to; empty if it happened to several.
    program: str
    #: Unix time.
    from_ms: int
    #: The same; None while it lasts.
    to_ms: int | None = None


@dataclass(slots=True)
class Timeline:
    """Everything that happened to the programs, in order."""

    started_at_ms: int = field(default_factory=now_ms)
    happenings: list[Happening] = field(default_factory=list)
    #: Faults that last, by their number in the plan.
    _active: dict[int, Happening] = field(default_factory=dict)

    def begin(self, planned: PlannedFault, from_ms: int, program: str) -> None:
        """Note a fault that began."""
        happening = Happening(planned.kind, program, from_ms)
        self._active[planned.number] = happening
        self.happenings.append(happening)

    def end(self, planned: PlannedFault) -> None:
        """Note that a fault has ended."""
        self._active.pop(planned.number).to_ms = now_ms()

    def start_program(self, program: str) -> None:
        """Note that a program was started again."""
        at_ms = now_ms()
        self.happenings.append(Happening("start", program, at_ms, at_ms))

    def during(self, from_ms: int, to_ms: int) -> list[Happening]:
        """Return what happened in a period."""
        return [
            each
            for each in self.happenings
            if each.from_ms <= to_ms and (each.to_ms is None or each.to_ms >= from_ms)
        ]

    def since_start_s(self, at_ms: int) -> float:
        """Return a Unix time in ms as seconds since the start of the run."""
        return (at_ms - self.started_at_ms) / 1000
