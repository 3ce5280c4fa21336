"""The store of deliverers: named methods over the script calls of the outbox."""

from __future__ import annotations

import contextlib

from redis.exceptions import RedisError

from batchmill.producer.protocol.calls import outbox as outbox_calls
from batchmill.producer.protocol.outbox import (
    Breaker,
    ClaimLimits,
    DeliveryOutcome,
    OutboxEntry,
    RedeliverStatus,
    claim_limits,
)
from batchmill.producer.protocol.replies import WriteStatus

from .store import Store


class OutboxStore(Store):
    """Events that wait for delivery in Redis, changed only by scripts."""

    def outbox_claim(
        self, *, owner: str, limit: int | ClaimLimits, lease_ms: int, session: str = ""
    ) -> list[OutboxEntry]:
        """Take events that are due. If the deliverer dies, they are due again after `lease_ms`.

        With a session they are due as soon as others see that the deliverer is gone.

        Events that cannot be read become dead letters.

        Args:
            owner: name of the deliverer.
            limit: the most events to take; a number limits neither hosts nor endpoints.
            lease_ms: time after which another deliverer may take them.
            session: this run of the deliverer; empty if it has none.
        """
        limits = claim_limits(limit) if isinstance(limit, int) else limit
        claimed = self.run(outbox_calls.claim(owner, lease_ms, limits, session))
        with contextlib.suppress(RedisError):  # they are due again after the lease
            for event in claimed.unusable:
                self.run(outbox_calls.settle_unusable(event))
        return claimed.entries

    def outbox_set_body_once(self, event_id: str, body: bytes) -> bytes:
        """Store an event's body unless it has one; return the stored body, which is sent."""
        return self.run(outbox_calls.set_body_once(event_id, body))

    def outbox_settle(
        self,
        event_id: str,
        *,
        fence: str,
        outcome: DeliveryOutcome,
        retry_in_ms: int = 0,
        http_status: int | None = None,
        reason: str = "",
        duration_ms: int | None = None,
        is_receiver_fault: bool = False,
        hold_ms: int = 0,
        breaker: Breaker | None = None,
    ) -> WriteStatus:
        """Record how an attempt ended: OK, or FENCED if another deliverer has the lease.

        Args:
            event_id: the event.
            fence: of the claim.
            outcome: EXHAUSTED, DISABLED and REFUSED leave a dead letter.
            retry_in_ms: with RETRY, time until the next attempt.
            http_status: status of the receiver's response, if there was one.
            reason: one word, for people; never the receiver's body.
            duration_ms: time that the attempt took; None if none was made.
            is_receiver_fault: whether the receiver failed, not this system. An endpoint that fails
                for 120 hours without a success is disabled.
            hold_ms: time for which the receiver asked for silence; it holds for its endpoint.
            breaker: when the endpoint is left alone after failures; None means never.
        """
        return self.run(
            outbox_calls.settle(
                *(event_id, fence, outcome),
                retry_in_ms=retry_in_ms,
                http_status=http_status,
                reason=reason,
                duration_ms=duration_ms,
                is_receiver_fault=is_receiver_fault,
                hold_ms=hold_ms,
                breaker=breaker or Breaker(),
            )
        )

    def outbox_repair(self, start: int, *, limit: int = 200) -> tuple[int, int]:
        """Queue events again that their endpoint's queue has lost, in one page of the outbox.

        Returns:
            The start of the next page, 0 after the last one; and how many events were lost.
        """
        return self.run(outbox_calls.repair(start, limit))

    def outbox_set_endpoint(self, endpoint: str, *, is_enabled: bool) -> bool:
        """Enable or disable an endpoint; return whether that changed anything."""
        return self.run(outbox_calls.set_endpoint(endpoint, is_enabled=is_enabled))

    def outbox_redeliver(self, event_id: str) -> RedeliverStatus:
        """Put a settled event back, with the same id and body, and drop its dead letter."""
        return self.run(outbox_calls.redeliver(event_id))
