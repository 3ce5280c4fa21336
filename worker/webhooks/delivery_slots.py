"""The deliveries that one deliverer has in flight, and how many more events it may claim."""

from __future__ import annotations

import time
from dataclasses import dataclass

from batchmill.producer.protocol.outbox import ClaimLimits, Lane

from .settings import WebhookSettings

#: Shares of all slots that hosts which may be slow hold together: a host gets its first slot up to
#: the first share, and further ones up to the second. So fifty receivers that hang leave room for
#: others.
_FIRST_SLOT_SHARE, _MORE_SLOTS_SHARE = 0.75, 0.5
#: Replayed events hold at most one in this many slots.
_REPLAY_DIVISOR = 8
#: An attempt that takes longer counts as one to a slow host.
_SLOW_S = 2.0
#: Events per claim: Redis serves no other client meanwhile.
_CLAIM_LIMIT = 64


@dataclass(frozen=True, slots=True)
class _Slot:
    lane: Lane
    since_s: float


class DeliverySlots:
    """Counts the deliveries in flight of one deliverer, by the kind of their host.

    Limits per host and per endpoint hold for all deliverers together, and are kept in Redis.
    Invariant: hosts that may be slow hold at most three quarters of all slots, so that fast ones
    always have the rest.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        """Start without deliveries."""
        self._settings = settings
        self._held: dict[str, _Slot] = {}

    def take(self, event_id: str, lane: Lane) -> None:
        """Count a delivery that begins."""
        self._held[event_id] = _Slot(lane, time.monotonic())

    def free(self, event_id: str) -> None:
        """Count a delivery that has ended."""
        self._held.pop(event_id, None)

    def claim_limits(self) -> ClaimLimits | None:
        """Return how many events may be claimed now; None if every slot is taken."""
        num_slots = self._settings.webhook_concurrency
        num_free = min(num_slots - len(self._held), _CLAIM_LIMIT)
        if num_free <= 0:
            return None
        slow_since_s = time.monotonic() - _SLOW_S
        num_slow = sum(
            slot.lane is not Lane.FAST or slot.since_s < slow_since_s
            for slot in self._held.values()
        )
        num_replayed = sum(slot.lane is Lane.REPLAY for slot in self._held.values())

        def room(limit: float, num_held: int) -> int:
            return max(0, min(num_free, int(limit) - num_held))

        return ClaimLimits(
            total=num_free,
            first=room(max(1.0, _FIRST_SLOT_SHARE * num_slots), num_slow),
            more=room(max(1.0, _MORE_SLOTS_SHARE * num_slots), num_slow),
            replay=room(max(1.0, num_slots / _REPLAY_DIVISOR), num_replayed),
            per_host=self._settings.webhook_concurrency_per_host,
            per_endpoint=self._settings.webhook_concurrency_per_endpoint,
        )
