"""Limits on the webhooks in flight per host, so that slow receivers delay only themselves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

#: As many deliveries may wait for a slot of a host as the host can take in this time.
_BACKLOG_S = 2.0
#: Assumed duration of an attempt before one has been measured.
_INITIAL_DURATION_S = 0.25
#: Weight of the newest measurement.
_SMOOTHING = 0.3
_MIN_POSTPONE_S, _MAX_POSTPONE_S = 0.05, 60.0
#: A host whose attempts take longer counts as slow.
_SLOW_S = 2.0
#: Shares of all slots that slow and unmeasured hosts may hold together: a host gets its first slot
#: up to the first share, and further ones up to the second. So fifty receivers that hang leave room
#: for others.
_FIRST_SLOT_SHARE, _MORE_SLOTS_SHARE = 0.75, 0.5
#: Idle hosts are forgotten if there are more.
_MAX_HOSTS = 1024


class HostBusy(Exception):
    """The host had no free slot in time."""


class HostLimiter:
    """Counts the deliveries to one host and measures how long the host takes.

    Invariant: at most `limit` deliveries hold a slot at a time.
    """

    def __init__(self, limit: int, max_present: int) -> None:
        """Start without deliveries.

        Args:
            limit: deliveries that may be sending at once.
            max_present: deliveries that may be sending or waiting at once.
        """
        self._limit = limit
        self._max_present = max_present
        self._slots = asyncio.Semaphore(limit)
        self._measured_s: float | None = None
        self._sending_since: dict[object, float] = {}
        self.num_present = 0  # waiting and sending

    @property
    def is_fast(self) -> bool:
        """Whether attempts have been measured, and neither they nor those in flight take long."""
        return self._measured_s is not None and self._duration_s <= _SLOW_S

    @property
    def has_room(self) -> bool:
        """Whether one more delivery can be taken on: a slot is free, or will be soon."""
        backlog = self._limit * (1 + _BACKLOG_S / self._duration_s)
        return self.num_present < min(backlog, self._max_present)

    @property
    def _duration_s(self) -> float:
        """Seconds that an attempt takes; at least the age of the oldest one in flight."""
        usual_s = _INITIAL_DURATION_S if self._measured_s is None else self._measured_s
        oldest = next(iter(self._sending_since.values()), None)
        return usual_s if oldest is None else max(usual_s, time.monotonic() - oldest)

    @property
    def postpone_s(self) -> float:
        """Seconds until the present deliveries will probably be done."""
        estimate_s = (self.num_present + 1) * self._duration_s / self._limit
        return min(max(estimate_s, _MIN_POSTPONE_S), _MAX_POSTPONE_S)

    @contextlib.asynccontextmanager
    async def slot(self, stop: asyncio.Event, timeout_s: float) -> AsyncIterator[None]:
        """Hold a slot while sending.

        Raises:
            HostBusy: no slot became free within `timeout_s` seconds, or before `stop` was set.
        """
        self.num_present += 1
        try:
            await self._take_slot(stop, timeout_s)
            attempt, start = object(), time.monotonic()
            self._sending_since[attempt] = start
            try:
                yield
            finally:
                self._slots.release()
                del self._sending_since[attempt]
                self._measure(time.monotonic() - start)
        finally:
            self.num_present -= 1

    def _measure(self, seconds: float) -> None:
        before = _INITIAL_DURATION_S if self._measured_s is None else self._measured_s
        self._measured_s = max(before + _SMOOTHING * (seconds - before), 0.001)

    async def _take_slot(self, stop: asyncio.Event, timeout_s: float) -> None:
        taking = asyncio.create_task(self._slots.acquire())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({taking, stopping}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        stopping.cancel()
        taking.cancel()  # has no effect if the slot is already taken
        await asyncio.wait({taking, stopping})
        if taking.cancelled():
            raise HostBusy


class HostLimiters:
    """One limiter per host, made at first use.

    Invariant: hosts that are slow or not yet measured hold at most three quarters of all slots, so
    that fast ones always have the rest.
    """

    def __init__(self, limit_per_host: int, max_present_per_host: int, num_slots: int) -> None:
        """Start without limiters.

        Args:
            limit_per_host: deliveries that may be sending to one host at once.
            max_present_per_host: deliveries of one host that may be sending or waiting at once.
            num_slots: deliveries of all hosts that may be sending or waiting at once.
        """
        self._limit = limit_per_host
        self._max_present = max_present_per_host
        self._num_slots = num_slots
        self._limiters: dict[str, HostLimiter] = {}

    def limiter(self, host: str) -> HostLimiter:
        """Return the limiter of a host (name and port)."""
        if host not in self._limiters and len(self._limiters) >= _MAX_HOSTS:
            self._limiters = {
                name: limiter for name, limiter in self._limiters.items() if limiter.num_present
            }
        return self._limiters.setdefault(host, HostLimiter(self._limit, self._max_present))

    def admits(self, limiter: HostLimiter) -> bool:
        """Return whether one more delivery to a limiter's host can be taken on."""
        if limiter.is_fast or not limiter.has_room:
            return limiter.has_room
        held = sum(other.num_present for other in self._limiters.values() if not other.is_fast)
        share = _FIRST_SLOT_SHARE if limiter.num_present == 0 else _MORE_SLOTS_SHARE
        return held < share * self._num_slots
