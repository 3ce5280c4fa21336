"""How many webhooks may be under way to each host, so that a slow receiver delays only itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

#: A host may have as many deliveries waiting for their turn as it can take in this time.
_BACKLOG_S = 2.0
#: Seconds an attempt is thought to take before one has been measured.
_INITIAL_DURATION_S = 0.25
#: Weight of the newest measurement.
_SMOOTHING = 0.3
_MIN_POSTPONE_S, _MAX_POSTPONE_S = 0.05, 60.0
#: Idle hosts are forgotten when there are more.
_MAX_HOSTS = 1024


class HostBusy(Exception):
    """The host did not have a free place in time."""


class HostGate:
    """Counts what is under way to one host and measures how long the host takes.

    Invariant: at most `limit` deliveries hold a place at a time.
    """

    def __init__(self, limit: int, max_present: int) -> None:
        """Make an empty gate.

        Args:
            limit: deliveries that may be sending at once.
            max_present: deliveries that may be here at once, the waiting ones included.
        """
        self._limit = limit
        self._max_present = max_present
        self._places = asyncio.Semaphore(limit)
        self._duration_s = _INITIAL_DURATION_S
        self.num_present = 0  # waiting and sending

    @property
    def admits(self) -> bool:
        """Whether one more can be taken on: there is a place, or will be soon."""
        backlog = self._limit * (1 + _BACKLOG_S / self._duration_s)
        return self.num_present < min(backlog, self._max_present)

    @property
    def postpone_s(self) -> float:
        """Seconds until the deliveries that are here now should be through."""
        estimate_s = (self.num_present + 1) * self._duration_s / self._limit
        return min(max(estimate_s, _MIN_POSTPONE_S), _MAX_POSTPONE_S)

    @contextlib.asynccontextmanager
    async def place(self, stop: asyncio.Event, timeout_s: float) -> AsyncIterator[None]:
        """Hold a place while sending.

        Raises:
            HostBusy: none became free within `timeout_s` seconds, or before `stop` was set.
        """
        self.num_present += 1
        try:
            await self._take_place(stop, timeout_s)
            start = time.monotonic()
            try:
                yield
            finally:
                self._places.release()
                self._duration_s += _SMOOTHING * (time.monotonic() - start - self._duration_s)
                self._duration_s = max(self._duration_s, 0.001)
        finally:
            self.num_present -= 1

    async def _take_place(self, stop: asyncio.Event, timeout_s: float) -> None:
        taking = asyncio.create_task(self._places.acquire())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({taking, stopping}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        stopping.cancel()
        taking.cancel()  # changes nothing where the place is ours already
        await asyncio.wait({taking, stopping})
        if taking.cancelled():
            raise HostBusy


class HostGates:
    """A gate for each host, made at first use."""

    def __init__(self, limit_per_host: int, max_present_per_host: int) -> None:
        self._limit = limit_per_host
        self._max_present = max_present_per_host
        self._gates: dict[str, HostGate] = {}

    def gate(self, host: str) -> HostGate:
        """The gate of a host (name and port)."""
        if host not in self._gates and len(self._gates) >= _MAX_HOSTS:
            self._gates = {name: gate for name, gate in self._gates.items() if gate.num_present}
        return self._gates.setdefault(host, HostGate(self._limit, self._max_present))
