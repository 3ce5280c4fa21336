"""The loop that claims due events from the outbox, sends each, and settles it.

The script that ends a job writes its event into the outbox. A deliverer claims due events under a
lease, sends each, and settles it. If a deliverer dies, the next one sends its events with the same
id and the same bytes. So delivery is at least once, and a receiver that drops ids it has seen gets
each event once. Any number of deliverers may run.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import redis
import structlog

from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry
from batchmill.producer.store.batches import batches
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.signature import signature_headers

from .host_concurrency import HostBusy, HostLimiters
from .payload import host_of, render_batch_body, render_body
from .schedule import RetrySchedule
from .sender import SendOutcome, WebhookSender
from .settings import WebhookSettings

_log = structlog.get_logger(__name__)

_CLAIM_LIMIT = 64
#: Seconds that a delivery waits for a slot of its host before it is put back.
_SLOT_TIMEOUT_S = 5.0
#: Lease beyond the longest possible attempt, so that a slow Redis can store the outcome in time.
_LEASE_MARGIN_S = 20.0
_REDIS_RETRY_S = 1.0
#: One host may hold at most one in this many of all slots, sending or waiting: a host that stops
#: responding must not take all of them before that is noticed.
_HOST_SLOT_DIVISOR = 4


class Deliverer:
    """Claims due events, sends them in parallel, settles each.

    Invariant: every claimed event is settled, or its lease runs out and another deliverer gets it.
    """

    def __init__(
        self, store: JobStore, settings: WebhookSettings, sender: WebhookSender, *, owner: str
    ) -> None:
        """Bind to the store and a sender; nothing is sent before `run`.

        Args:
            store: the job store, used from threads.
            settings: secrets, limits and schedule, with at least one secret.
            sender: makes the HTTP requests.
            owner: name of this deliverer in logs and leases.
        """
        self._store = store
        self._settings = settings
        self._sender = sender
        self._owner = owner
        self._schedule = RetrySchedule(
            settings.webhook_schedule_s, settings.webhook_jitter, settings.webhook_busy_wait_s
        )
        self._limiters = HostLimiters(
            settings.webhook_concurrency_per_host,
            max(
                settings.webhook_concurrency_per_host,
                settings.webhook_concurrency // _HOST_SLOT_DIVISOR,
            ),
            settings.webhook_concurrency,
        )
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._is_outbox_reachable = True

    async def run(self) -> None:
        """Deliver until `stop` is called; then finish attempts in flight and put back the rest."""
        stopping = asyncio.create_task(self._stop.wait())
        while not self._stop.is_set():
            num_claimed = await self._claim_and_start()
            await self._pause(stopping, was_empty=num_claimed == 0)
        await stopping
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Ask `run` to end, from the same event loop."""
        self._stop.set()

    async def _claim_and_start(self) -> int:
        """Claim and start as many deliveries as there is room for, and return their number."""
        limit = min(_CLAIM_LIMIT, self._settings.webhook_concurrency - len(self._tasks))
        if limit <= 0:
            return 0
        lease_s = self._settings.webhook_total_timeout_s + _SLOT_TIMEOUT_S + _LEASE_MARGIN_S
        try:
            entries = await asyncio.to_thread(
                self._store.outbox_claim,
                owner=self._owner,
                limit=limit,
                lease_ms=round(lease_s * 1000),
            )
        except redis.RedisError as error:
            if self._is_outbox_reachable:  # logged once per outage, not per attempt
                _log.warning("outbox_unreachable", error=type(error).__name__)
            self._is_outbox_reachable = False
            return 0
        self._is_outbox_reachable = True
        for entry in entries:
            task = asyncio.create_task(self._deliver(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(entries)

    async def _pause(self, stopping: asyncio.Task[bool], *, was_empty: bool) -> None:
        """Wait until there is room and the poll interval is over, or until `stop` is called."""
        waiting: set[asyncio.Task[Any]] = {stopping}
        timeout_s: float | None = self._settings.webhook_poll_interval_s
        if len(self._tasks) >= self._settings.webhook_concurrency:
            waiting |= self._tasks
            timeout_s = None
        elif not was_empty:
            timeout_s = 0.0
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def _deliver(self, entry: OutboxEntry) -> None:
        """Send one event when its host has a free slot, and settle it."""
        limiter = self._limiters.limiter(host_of(entry.url))
        start_s = time.monotonic()
        if not self._limiters.admits(limiter):
            await self._postpone(entry, limiter.postpone_s)
            return
        try:
            async with limiter.slot(self._stop, _SLOT_TIMEOUT_S):
                start_s = time.monotonic()  # without the wait for a slot
                outcome = await self._send(entry)
        except HostBusy:
            await self._postpone(entry, 0.0 if self._stop.is_set() else limiter.postpone_s)
            return
        except redis.RedisError as error:  # nothing was sent; it is due again after the lease
            _log.warning("event_not_read", event_id=entry.event_id, error=type(error).__name__)
            return
        except Exception:  # a bug: retried by the schedule, and finally a dead letter
            _log.exception("webhook_attempt_broke", event_id=entry.event_id)
            outcome = SendOutcome(None, error="internal")
        await self._settle(entry, outcome, duration_s=time.monotonic() - start_s)

    async def _send(self, entry: OutboxEntry) -> SendOutcome:
        secrets = self._settings.secrets_named(entry.secret_name)
        if not secrets:  # retried by the schedule: the operator may add it
            _log.error("unknown_webhook_secret", name=entry.secret_name, event_id=entry.event_id)
            return SendOutcome(None, error="unknown_secret")
        body = entry.body
        if body is None:
            body = await asyncio.to_thread(self._render_once, entry)
        timestamp_s = int(time.time())
        headers = signature_headers(entry.event_id, timestamp_s, body, secrets=secrets)
        return await self._sender.send(entry.url, body, headers | {"x-attempt": str(entry.attempt)})

    def _render_once(self, entry: OutboxEntry) -> bytes:
        if entry.type.startswith("batch."):
            body = render_batch_body(entry, self._store.read(batches([entry.job_id]))[0])
        else:
            body = render_body(entry, self._store.load(entry.job_id))
        return self._store.outbox_set_body_once(entry.event_id, body)

    async def _settle(self, entry: OutboxEntry, outcome: SendOutcome, *, duration_s: float) -> None:
        """Store how the attempt went and when the next one is due."""
        decision, wait_s = self._decide(entry, outcome)
        _log.info(
            "webhook_attempt",
            event_id=entry.event_id,
            host=host_of(entry.url),
            attempt=entry.attempt,
            status=outcome.status,
            reason=outcome.reason,
            outcome=decision.value,
            duration_s=round(duration_s, 3),
            next_in_s=round(wait_s, 1) if decision is DeliveryOutcome.RETRY else None,
        )
        await self._write_outcome(entry, decision, wait_s, sent=outcome, duration_s=duration_s)

    def _decide(self, entry: OutboxEntry, outcome: SendOutcome) -> tuple[DeliveryOutcome, float]:
        if outcome.delivered:
            return DeliveryOutcome.DELIVERED, 0.0
        if outcome.disables:
            return DeliveryOutcome.DISABLED, 0.0
        wait_s = self._schedule.wait_before_next_s(
            entry.attempt,
            retry_after_s=outcome.retry_after_s,
            rng=self._rng,
            is_busy=outcome.is_busy,
        )
        if wait_s is None:
            return DeliveryOutcome.EXHAUSTED, 0.0
        return DeliveryOutcome.RETRY, wait_s

    async def _postpone(self, entry: OutboxEntry, wait_s: float) -> None:
        await self._write_outcome(entry, DeliveryOutcome.POSTPONED, wait_s)

    async def _write_outcome(
        self,
        entry: OutboxEntry,
        outcome: DeliveryOutcome,
        wait_s: float,
        *,
        sent: SendOutcome | None = None,
        duration_s: float = 0.0,
    ) -> None:
        """Settle the event, and retry while the lease lasts: a lost outcome means sending again."""
        deadline_s = time.monotonic() + _LEASE_MARGIN_S
        while True:
            try:
                await asyncio.to_thread(
                    self._store.outbox_settle,
                    entry.event_id,
                    fence=entry.fence,
                    outcome=outcome,
                    retry_in_ms=round(wait_s * 1000),
                    http_status=None if sent is None else sent.status,
                    reason="" if sent is None else sent.reason,
                    duration_ms=round(duration_s * 1000),
                    is_receiver_fault=sent is not None and sent.is_receiver_fault,
                )
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline_s:
                    _log.warning(
                        "outcome_lost", event_id=entry.event_id, error=type(error).__name__
                    )
                    return
            await asyncio.sleep(_REDIS_RETRY_S)
