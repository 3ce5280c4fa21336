"""The faults of a plan that have not begun, in their lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from .fault_kinds import KINDS, Lane
from .plan import Plan, PlannedFault


class Schedule:
    """Gives out each fault when it is due and the one before it in its lane is over.

    On a busy machine faults take longer than planned, and the next one of the lane then waits:
    otherwise a server would be killed that an earlier fault is just about to start again.
    """

    def __init__(self, plan: Plan) -> None:
        self._waiting: dict[Lane, deque[PlannedFault]] = {lane: deque() for lane in Lane}
        for fault in plan.faults:
            self._waiting[KINDS[fault.kind].lane].append(fault)

    def __bool__(self) -> bool:
        """Whether a fault has not begun yet."""
        return any(self._waiting.values())

    def take_due(
        self, elapsed_s: float, active: Collection[PlannedFault]
    ) -> Iterator[PlannedFault]:
        """Yield the faults that begin now, at most one per lane.

        Args:
            elapsed_s: seconds since the start of the run.
            active: the faults that last.
        """
        busy = {KINDS[fault.kind].lane for fault in active}
        for lane, waiting in self._waiting.items():
            if waiting and lane not in busy and waiting[0].at_s <= elapsed_s:
                yield waiting.popleft()
