"""Delivers the webhooks that finished jobs owe.

An event is written into the outbox by the script that ends its job. A deliverer claims due events
under a lease of its own, sends each, and settles it; a deliverer that dies leaves its events to
the next one, with the same id and the same bytes. So delivery is at least once, and a receiver
that drops ids it has seen gets each event once. Any number of deliverers may run.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import redis
import structlog

from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry
from batchmill.producer.store.batch_store import BatchStore
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.signature import signature_headers

from .host_concurrency import HostBusy, HostLimiters
from .payload import host_of, render_batch_body, render_body
from .schedule import RetrySchedule
from .sender import SendOutcome, WebhookSender
from .settings import WebhookSettings

_log = structlog.get_logger(__name__)

_CLAIM_LIMIT = 64
#: Seconds a delivery waits for its host's turn before it is put back.
_TURN_TIMEOUT_S = 5.0
#: Lease beyond the longest possible attempt: time for a slow Redis to take the outcome.
_LEASE_MARGIN_S = 20.0
_REDIS_RETRY_S = 1.0
#: One host may have this part of all places, sending and waiting: a host that stops answering
#: must not take them all before that is noticed.
_HOST_SHARE = 4


class Deliverer:
    """Claims due events, sends them in parallel, settles each.

    Invariant: every claimed event is settled, or its lease runs out and another deliverer gets it.
    """

    def __init__(
        self, store: JobStore, settings: WebhookSettings, sender: WebhookSender, *, owner: str
    ) -> None:
        """Prepare; nothing is sent before `run`.

        Args:
            store: the job store, used from threads.
            settings: secrets, limits and schedule; there must be at least one secret.
            sender: makes the HTTP requests.
            owner: name of this deliverer, for people.
        """
        self._store = store
        self._settings = settings
        self._sender = sender
        self._owner = owner
        self._schedule = RetrySchedule(
            settings.webhook_schedule_s, settings.webhook_jitter, settings.webhook_busy_wait_s
        )
        self._gates = HostLimiters(
            settings.webhook_concurrency_per_host,
            max(settings.webhook_concurrency_per_host, settings.webhook_concurrency // _HOST_SHARE),
            settings.webhook_concurrency,
        )
        self._rng = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._outbox_answers = True

    async def run(self) -> None:
        """Deliver until `stop` is called; then finish what is being sent and give back the rest."""
        stopping = asyncio.create_task(self._stop.wait())
        while not self._stop.is_set():
            num_claimed = await self._claim_and_start()
            await self._pause(stopping, looked_in_vain=num_claimed == 0)
        await stopping
        if self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Ask `run` to end, from the same event loop."""
        self._stop.set()

    async def _claim_and_start(self) -> int:
        """Claim as much as there is room for, and return how much that was."""
        limit = min(_CLAIM_LIMIT, self._settings.webhook_concurrency - len(self._tasks))
        if limit <= 0:
            return 0
        lease_s = self._settings.webhook_total_timeout_s + _TURN_TIMEOUT_S + _LEASE_MARGIN_S
        try:
            entries = await asyncio.to_thread(
                self._store.outbox_claim,
                owner=self._owner,
                limit=limit,
                lease_ms=round(lease_s * 1000),
            )
        except redis.RedisError as error:
            if self._outbox_answers:  # told once, not with every look
                _log.warning("outbox_unreachable", error=type(error).__name__)
            self._outbox_answers = False
            return 0
        self._outbox_answers = True
        for entry in entries:
            task = asyncio.create_task(self._deliver(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(entries)

    async def _pause(self, stopping: asyncio.Task[bool], *, looked_in_vain: bool) -> None:
        """Wait until it is worth looking again: a place is free, time has passed, or we stop."""
        waiting: set[asyncio.Task[Any]] = {stopping}
        timeout_s: float | None = self._settings.webhook_poll_interval_s
        if len(self._tasks) >= self._settings.webhook_concurrency:
            waiting |= self._tasks
            timeout_s = None
        elif not looked_in_vain:
            timeout_s = 0.0
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def _deliver(self, entry: OutboxEntry) -> None:
        """Send one event when its host has a place for it, and settle it."""
        gate = self._gates.gate(host_of(entry.url))
        start_s = time.monotonic()
        if not self._gates.admits(gate):
            await self._postpone(entry, gate.postpone_s)
            return
        try:
            async with gate.place(self._stop, _TURN_TIMEOUT_S):
                start_s = time.monotonic()  # without the wait for a place
                outcome = await self._send(entry)
        except HostBusy:
            await self._postpone(entry, 0.0 if self._stop.is_set() else gate.postpone_s)
            return
        except redis.RedisError as error:  # nothing was sent; the lease runs out and it comes back
            _log.warning("event_not_read", event_id=entry.event_id, error=type(error).__name__)
            return
        except Exception:  # a bug: still retried by the schedule, and a dead letter in the end
            _log.exception("webhook_attempt_broke", event_id=entry.event_id)
            outcome = SendOutcome(None, error="internal")
        await self._settle(entry, outcome, duration_s=time.monotonic() - start_s)

    async def _send(self, entry: OutboxEntry) -> SendOutcome:
        secrets = self._settings.secrets_named(entry.secret_name)
        if not secrets:  # tried again by the schedule: the operator may add it
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
            body = render_batch_body(entry, BatchStore(self._store).load(entry.job_id))
        else:
            body = render_body(entry, self._store.load(entry.job_id))
        return self._store.outbox_set_body_once(entry.event_id, body)

    async def _settle(self, entry: OutboxEntry, outcome: SendOutcome, *, duration_s: float) -> None:
        """Write down how the attempt went, and when the next one is."""
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
        """Settle, trying again while the lease lasts: a lost outcome means sending again."""
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
