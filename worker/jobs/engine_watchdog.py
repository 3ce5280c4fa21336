"""`EngineWatchdog`: kills an engine whose loop stands still."""

from __future__ import annotations

from batchmill.worker.engine_host.engine_link import EngineLink


class EngineWatchdog:
    """Kills a stuck engine, and says whether the engine that ended was one."""

    def __init__(self, link: EngineLink, *, stall_s: float) -> None:
        """Bind to the link.

        Args:
            link: to the engine.
            stall_s: seconds for which the loop of a ready engine may stand still.
        """
        self._link = link
        self._stall_s = stall_s
        #: The engine's loop has stood still for too long.
        self.is_engine_stuck = False
        self._has_killed = False

    def look(self) -> None:
        """Kill the engine if its loop stands still. One thread calls this at short intervals."""
        stalled_s = self._link.measure_stall_s()
        self.is_engine_stuck = stalled_s > self._stall_s
        if self.is_engine_stuck:
            self._has_killed = True
            self._link.kill(f"its loop has not moved for {stalled_s:.1f} s")

    def note_new_engine(self) -> None:
        """Forget the kill of an earlier engine."""
        self._has_killed = False

    def take_kill(self) -> bool:
        """Return whether the engine that has ended was killed because it was stuck."""
        has_killed, self._has_killed = self._has_killed, False
        return has_killed
