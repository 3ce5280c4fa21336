"""How many webhooks may be under way to each host, so that slow receivers delay only themselves."""

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
#: An attempt that takes longer makes its host a slow one.
_SLOW_S = 2.0
#: Parts of all places that hosts which are slow, or not known yet, may hold together: one each up
#: to the first, more than one up to the second. So fifty receivers that hang leave others room.
_FIRST_SHARE, _MORE_SHARE = 0.75, 0.5
#: Idle hosts are forgotten when there are more.
_MAX_HOSTS = 1024


class HostBusy(Exception):
    """The host did not have a free place in time."""


class HostLimiter:
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
        self._measured_s: float | None = None
        self._sending_since: dict[object, float] = {}
        self.num_present = 0  # waiting and sending

    @property
    def is_quick(self) -> bool:
        """Whether attempts have ended, and neither they nor those under way take long."""
        return self._measured_s is not None and self._duration_s <= _SLOW_S

    @property
    def has_room(self) -> bool:
        """Whether one more can be taken on: there is a place, or will be soon."""
        backlog = self._limit * (1 + _BACKLOG_S / self._duration_s)
        return self.num_present < min(backlog, self._max_present)

    @property
    def _duration_s(self) -> float:
        """Seconds that an attempt takes; at least as many as the oldest has been under way."""
        usual_s = _INITIAL_DURATION_S if self._measured_s is None else self._measured_s
        oldest = next(iter(self._sending_since.values()), None)
        return usual_s if oldest is None else max(usual_s, time.monotonic() - oldest)

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
            attempt, start = object(), time.monotonic()
            self._sending_since[attempt] = start
            try:
                yield
            finally:
                self._places.release()
                del self._sending_since[attempt]
                self._measure(time.monotonic() - start)
        finally:
            self.num_present -= 1

    def _measure(self, seconds: float) -> None:
        before = _INITIAL_DURATION_S if self._measured_s is None else self._measured_s
        self._measured_s = max(before + _SMOOTHING * (seconds - before), 0.001)

    async def _take_place(self, stop: asyncio.Event, timeout_s: float) -> None:
        taking = asyncio.create_task(self._places.acquire())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({taking, stopping}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        stopping.cancel()
        taking.cancel()  # changes nothing where the place is ours already
        await asyncio.wait({taking, stopping})
        if taking.cancelled():
            raise HostBusy


class HostLimiters:
    """A gate for each host, made at first use.

    Invariant: hosts that are slow or not known yet hold at most three quarters of all places, so
    that quick ones always have the rest.
    """

    def __init__(self, limit_per_host: int, max_present_per_host: int, num_places: int) -> None:
        """Make no gate yet.

        Args:
            limit_per_host: deliveries that may be sending to one host at once.
            max_present_per_host: deliveries of one host at once, the waiting ones included.
            num_places: deliveries of all hosts at once, the waiting ones included.
        """
        self._limit = limit_per_host
        self._max_present = max_present_per_host
        self._num_places = num_places
        self._gates: dict[str, HostLimiter] = {}

    def gate(self, host: str) -> HostLimiter:
        """The gate of a host (name and port)."""
        if host not in self._gates and len(self._gates) >= _MAX_HOSTS:
            self._gates = {name: gate for name, gate in self._gates.items() if gate.num_present}
        return self._gates.setdefault(host, HostLimiter(self._limit, self._max_present))

    def admits(self, gate: HostLimiter) -> bool:
        """Whether one more delivery can be taken on for a gate's host."""
        if gate.is_quick or not gate.has_room:
            return gate.has_room
        held = sum(other.num_present for other in self._gates.values() if not other.is_quick)
        share = _FIRST_SHARE if gate.num_present == 0 else _MORE_SHARE
        return held < share * self._num_places
