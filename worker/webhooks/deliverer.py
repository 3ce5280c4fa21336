"""The loop that claims due events from the outbox, sends each, and settles it.

The script that ends a job writes its event into the outbox. A deliverer claims due events under a
lease, sends each, and settles it. Which events are due, how many deliveries a host or an endpoint
has in flight, and which endpoints are left alone for a while is kept in Redis, for all deliverers
together. If a deliverer dies, the next one sends its events with the same id and the same bytes. So
delivery is at least once, and a receiver that drops ids it has seen gets each event once. Any
number of deliverers may run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import redis
import structlog

from batchmill.producer.errors import BatchmillError
from batchmill.producer.protocol.content import UnreadableContent
from batchmill.producer.protocol.outbox import Breaker, DeliveryOutcome, OutboxEntry
from batchmill.producer.store.batches import batches
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.receivers import receiver_secrets
from batchmill.producer.tracing.traceparent import trace_fields
from batchmill.producer.webhook.signature import signature_headers
from batchmill.worker.metrics.deliverer_series import DelivererMeter

from .delivery_slots import DeliverySlots
from .delivery_span import DeliverySpan
from .payload import host_of, render_batch_body, render_body, render_response_body
from .schedule import RetrySchedule
from .sender import SendOutcome, WebhookSender
from .settings import WebhookSettings
from .signing_secrets import SigningSecrets

_log = structlog.get_logger(__name__)

#: Lease beyond the longest possible attempt, so that a slow Redis can store the outcome in time.
_LEASE_MARGIN_S = 20.0
_REDIS_RETRY_S = 1.0
#: Deliveries that end within this time lead to one claim instead of many.
_MIN_CLAIM_INTERVAL_S = 0.002
#: One page of the waiting events is checked for lost queue entries this often.
_REPAIR_INTERVAL_S = 1.0


class Deliverer:
    """Claims due events, sends them in parallel, settles each.

    Invariant: every claimed event is settled, or its lease runs out and another deliverer gets it.
    """

    def __init__(
        self,
        store: JobStore,
        settings: WebhookSettings,
        sender: WebhookSender,
        *,
        owner: str,
        session: str = "",
        tracer: Any = None,
        meter: DelivererMeter | None = None,
    ) -> None:
        """Bind to the store and a sender; nothing is sent before `run`.

        Args:
            store: the job store, used from threads.
            settings: secrets, limits and schedule, with at least one secret.
            sender: makes the HTTP requests.
            owner: name of this deliverer in logs and leases.
            session: this run of it; empty if others cannot see its end.
            tracer: OpenTelemetry's; None makes no spans.
            meter: counts attempts.
        """
        self._store = store
        self._settings = settings
        self._secrets = SigningSecrets(settings)
        self._sender = sender
        self._owner = owner
        self._session = session
        self._tracer = tracer
        self._meter = meter or DelivererMeter()
        self._schedule = RetrySchedule(
            settings.webhook_schedule_s, settings.webhook_jitter, settings.webhook_busy_wait_s
        )
        self._slots = DeliverySlots(settings)
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_outbox_reachable = True
        # When the first claim began that has had no reply; None after a reply.
        self._unanswered_since_s: float | None = None
        self._repair_start = 0

    @property
    def broker_silent_s(self) -> float:
        """Seconds for which Redis has not replied to a claim."""
        since_s = self._unanswered_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def num_in_flight(self) -> int:
        """Deliveries in flight."""
        return len(self._tasks)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    async def run(self) -> None:
        """Deliver until `stop` is called; then finish the attempts in flight."""
        repairing = asyncio.create_task(self._repair())
        while not self._stop.is_set():
            self._wake.clear()
            if not await self._claim_and_start():
                await self._wait()
        repairing.cancel()
        await asyncio.wait({repairing, *self._tasks})

    def stop(self) -> None:
        """Ask `run` to end, from the same event loop."""
        self._stop.set()
        self._wake.set()

    async def _claim_and_start(self) -> bool:
        """Start as many deliveries as there is room for; return whether more may be due."""
        limits = self._slots.claim_limits()
        if limits is None:
            return False
        lease_s = self._settings.webhook_total_timeout_s + _LEASE_MARGIN_S
        if self._unanswered_since_s is None:
            self._unanswered_since_s = time.monotonic()
        try:
            entries = await asyncio.to_thread(
                self._store.outbox_claim,
                owner=self._owner,
                limit=limits,
                lease_ms=round(lease_s * 1000),
                session=self._session,
            )
        except redis.RedisError as error:
            if self._is_outbox_reachable:  # logged once per outage, not per attempt
                _log.warning(
                    "outbox_unreachable", error=type(error).__name__, reason=str(error)[:200]
                )
            self._is_outbox_reachable = False
            return False
        self._is_outbox_reachable = True
        self._unanswered_since_s = None
        for entry in entries:
            self._slots.take(entry.event_id, entry.lane)
            task = asyncio.create_task(self._deliver(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(entries) == limits.total

    async def _wait(self) -> None:
        """Wait until a delivery has ended, for the poll interval, or until `stop` is called."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.webhook_poll_interval_s):
                await self._wake.wait()
        await asyncio.sleep(_MIN_CLAIM_INTERVAL_S)

    async def _repair(self) -> None:
        """Check one page of the waiting events after another, until cancelled."""
        while True:
            await asyncio.sleep(_REPAIR_INTERVAL_S)
            try:
                self._repair_start, num_lost = await asyncio.to_thread(
                    self._store.outbox_repair, self._repair_start
                )
            except redis.RedisError:
                continue  # the loop that claims reports it
            if num_lost:
                _log.warning("lost_events_queued_again", number=num_lost)

    async def _deliver(self, entry: OutboxEntry) -> None:
        """Send one event, and settle it."""
        start_s = time.monotonic()
        span = DeliverySpan(self._tracer, entry)
        try:
            outcome = await self._send_safely(entry, span)
            span.end(outcome)
            if outcome is not None:
                await self._settle(entry, outcome, duration_s=time.monotonic() - start_s)
        finally:
            self._slots.free(entry.event_id)
            self._wake.set()

    async def _send_safely(self, entry: OutboxEntry, span: DeliverySpan) -> SendOutcome | None:
        """Send one event; None if its body could not be read from Redis."""
        try:
            return await self._send(entry, span)
        except redis.RedisError as error:  # nothing was sent; it is due again after the lease
            _log.warning("event_not_read", event_id=entry.event_id, error=type(error).__name__)
            return None
        except UnreadableContent as error:  # retried by the schedule: the operator may add the key
            code = error.code if isinstance(error, BatchmillError) else "integrity"
            _log.error("event_not_opened", event_id=entry.event_id, code=code, reason=str(error))
            return SendOutcome(None, error=code)
        except Exception:  # a bug: retried by the schedule, and finally a dead letter
            _log.exception("webhook_attempt_broke", event_id=entry.event_id)
            return SendOutcome(None, error="internal")

    async def _send(self, entry: OutboxEntry, span: DeliverySpan) -> SendOutcome:
        secrets = await self._secrets_of(entry)
        if not secrets and entry.receiver_id is not None:
            return SendOutcome(None, error="refused_receiver")
        if not secrets:  # retried by the schedule: the operator may add it
            _log.error("unknown_webhook_secret", name=entry.secret_name, event_id=entry.event_id)
            return SendOutcome(None, error="unknown_secret")
        if entry.unreadable is not None:
            raise entry.unreadable
        body = entry.body
        if body is None:
            body = await asyncio.to_thread(self._render_once, entry)
        timestamp_s = int(time.time())
        headers = signature_headers(entry.event_id, timestamp_s, body, secrets=secrets)
        headers |= {"x-attempt": str(entry.attempt)} | span.headers()
        return await self._sender.send(entry.url, body, headers)

    async def _secrets_of(self, entry: OutboxEntry) -> tuple[str, ...]:
        """Return the secrets that sign an event; none if they are not known."""
        if entry.receiver_id is None:
            return self._secrets.named(entry.secret_name)
        return await asyncio.to_thread(self._store.read, receiver_secrets(entry.receiver_id))

    def _render_once(self, entry: OutboxEntry) -> bytes:
        if entry.type.startswith("response."):
            body = render_response_body(entry)
        elif entry.type.startswith("batch."):
            body = render_batch_body(entry, self._store.read(batches([entry.job_id]))[0])
        else:
            body = render_body(entry, self._store.load(entry.job_id))
        return self._store.outbox_set_body_once(entry.event_id, body)

    async def _settle(self, entry: OutboxEntry, outcome: SendOutcome, *, duration_s: float) -> None:
        """Store how the attempt went and when the next one is due."""
        decision, wait_s = self._decide(entry, outcome)
        self._meter.note_attempt(decision.value, outcome.status, duration_s)
        _log.info(
            "webhook_attempt",
            event_id=entry.event_id,
            job_id=entry.job_id,
            **trace_fields(entry.traceparent),
            host=host_of(entry.url),
            attempt=entry.attempt,
            status=outcome.status,
            reason=outcome.reason,
            outcome=decision.value,
            duration_s=round(duration_s, 3),
            next_in_s=round(wait_s, 1) if decision is DeliveryOutcome.RETRY else None,
        )
        await self._write_outcome(entry, decision, wait_s, outcome, duration_s)

    def _decide(self, entry: OutboxEntry, outcome: SendOutcome) -> tuple[DeliveryOutcome, float]:
        if outcome.delivered:
            return DeliveryOutcome.DELIVERED, 0.0
        if outcome.disables:
            is_gone = outcome.status is not None
            return DeliveryOutcome.DISABLED if is_gone else DeliveryOutcome.REFUSED, 0.0
        wait_s = self._schedule.wait_before_next_s(
            entry.attempt,
            retry_after_s=outcome.retry_after_s,
            rng=self._rng,
            is_busy=outcome.is_busy,
        )
        if wait_s is None:
            return DeliveryOutcome.EXHAUSTED, 0.0
        return DeliveryOutcome.RETRY, wait_s

    async def _write_outcome(
        self,
        entry: OutboxEntry,
        outcome: DeliveryOutcome,
        wait_s: float,
        sent: SendOutcome,
        duration_s: float,
    ) -> None:
        """Settle the event, and retry while the lease lasts: a lost outcome means sending again."""
        deadline_s = time.monotonic() + _LEASE_MARGIN_S
        breaker = self._breaker()
        hold_s = min(sent.hold_s, self._settings.webhook_breaker_max_wait_s)
        while True:
            try:
                await asyncio.to_thread(
                    self._store.outbox_settle,
                    entry.event_id,
                    fence=entry.fence,
                    outcome=outcome,
                    retry_in_ms=round(wait_s * 1000),
                    http_status=sent.status,
                    reason=sent.reason,
                    duration_ms=round(duration_s * 1000),
                    is_receiver_fault=sent.is_receiver_fault,
                    hold_ms=round(hold_s * 1000),
                    breaker=breaker,
                )
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline_s:
                    _log.warning(
                        "outcome_lost", event_id=entry.event_id, error=type(error).__name__
                    )
                    return
            await asyncio.sleep(_REDIS_RETRY_S)

    def _breaker(self) -> Breaker:
        settings, jitter = self._settings, self._settings.webhook_jitter
        factor = 1000 * self._rng.uniform(1 - jitter, 1 + jitter)
        return Breaker(
            settings.webhook_breaker_failures,
            round(settings.webhook_breaker_wait_s * factor),
            round(settings.webhook_breaker_max_wait_s * factor),
        )
