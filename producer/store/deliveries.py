"""Webhook deliveries as the operator sees them: events, their attempts, disabled endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import RedeliverStatus
from batchmill.producer.protocol.records import DeadLetterKind

from .job_store import JobStore

#: Maximum number of dead letters that are searched for those of one endpoint.
_MAX_LETTERS = 10_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to deliver an event."""

    #: When it ended, on Redis' clock.
    at_ms: int
    #: HTTP status; None if there was no response.
    http_status: int | None
    #: `http_200`, `timeout`, `refused_address` …
    reason: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    """A webhook event and the state of its delivery."""

    id: str
    type: str
    job_id: str
    url: str
    #: `pending`, `delivered`, `exhausted`, `disabled` or `superseded` (an `output`
    #: event that the job's end has overtaken).
    state: str
    #: Attempts since it was written or redelivered.
    attempts: int
    created_at_ms: int
    #: Time of the next attempt; None if it is settled.
    due_at_ms: int | None
    #: The last twenty attempts, oldest first.
    log: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class DisabledEndpoint:
    """Receivers at one scheme, host, port and path; nothing is sent there until it is enabled."""

    endpoint: str
    #: `gone` (its response was 410) or `no_success_for_120_hours`.
    reason: str
    at_ms: int


class Deliveries:
    """Reads deliveries, and enables endpoints again. Owns nothing but the store it is given.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: JobStore) -> None:
        """Bind to a store."""
        self._store = store

    def event(self, event_id: str) -> EventStatus | None:
        """Return an event; None if it does not exist or its time to live has run out."""
        client = self._store.client
        with client.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(keys.event(event_id))
            pipeline.zscore(keys.OUTBOX, event_id)
            fields, due_at_ms = pipeline.execute()
        if b"type" not in fields:
            return None
        return _event(fields, due_at_ms)

    def disabled_endpoints(self) -> list[DisabledEndpoint]:
        """Return the disabled endpoints, oldest first."""
        found = cast(dict[bytes, bytes], self._store.client.hgetall(keys.ENDPOINTS_DISABLED))
        endpoints = [_endpoint(name, value) for name, value in found.items()]
        return sorted(endpoints, key=lambda endpoint: (endpoint.at_ms, endpoint.endpoint))

    def enable(self, endpoint: str) -> bool:
        """Enable an endpoint again; return False if it was not disabled.

        Events that failed meanwhile stay dead letters: see `redeliver_all`.
        """
        with self._store.client.pipeline(transaction=True) as pipeline:
            pipeline.hdel(keys.ENDPOINTS_DISABLED, endpoint)
            pipeline.delete(keys.failing(endpoint))
            return bool(pipeline.execute()[0])

    def redeliver_all(self, endpoint: str) -> int:
        """Redeliver the dead-letter events of an endpoint; return how many."""
        letters = self._store.dead_letters(limit=_MAX_LETTERS)
        return sum(
            self._store.outbox_redeliver(letter.id) is RedeliverStatus.OK
            for letter in letters
            if letter.kind is DeadLetterKind.WEBHOOK and _belongs(letter.source, endpoint)
        )


def _belongs(url: str, endpoint: str) -> bool:
    """Return whether a URL belongs to an endpoint, named as by `endpoint_of` in `events.lua`."""
    without_query = url.partition("#")[0].partition("?")[0]
    scheme, _, rest = without_query.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}/{path}" == endpoint


def _event(fields: Mapping[bytes, bytes], due_at_ms: Any) -> EventStatus:
    lines = fields.get(b"log", b"").decode().splitlines()
    return EventStatus(
        id=fields[b"id"].decode(),
        type=fields[b"type"].decode(),
        job_id=fields[b"job_id"].decode(),
        url=fields[b"url"].decode(),
        state=fields[b"state"].decode(),
        attempts=int(fields[b"attempts"]),
        created_at_ms=int(fields[b"created_at_ms"]),
        due_at_ms=None if due_at_ms is None else int(due_at_ms),
        log=tuple(_attempt(line) for line in lines),
    )


def _attempt(line: str) -> Attempt:
    at_ms, status, reason, duration_ms = line.split(",")
    return Attempt(int(at_ms), int(status) if status else None, reason, int(duration_ms))


def _endpoint(name: bytes, value: bytes) -> DisabledEndpoint:
    at_ms, _, reason = value.decode(errors="replace").partition(" ")
    moment_ms = int(at_ms) if at_ms.isdecimal() else 0  # forged, but disabled all the same
    return DisabledEndpoint(name.decode(errors="backslashreplace"), reason, moment_ms)
