"""Webhook deliveries as the operator sees them: events and their attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import readable_names, stored
from batchmill.producer.protocol.calls.pauses import all_pauses
from batchmill.producer.protocol.outbox import endpoint_of, host_of_endpoint
from batchmill.producer.protocol.pauses import PauseKind

from .job_store import JobStore

#: Most runs, and most `output` events, whose events of one job are looked up.
_MAX_RUNS = 100
_MAX_OUTPUTS = 100
#: Events that are looked at together for those of one receiver.
_SCAN = 5000
#: Names of the events at which a run ends.
END_EVENTS = ("completed", "failed", "cancelled", "expired")


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
    tenant: str
    #: `pending`, `delivered`, `exhausted` (its attempts failed), `refused` (sending there is
    #: not allowed), `disabled` (its endpoint is) or `superseded` (an `output` event that the
    #: job's end has overtaken).
    state: str
    #: Attempts since it was written or redelivered.
    attempts: int
    created_at_ms: int
    #: Time before which no attempt is made; None if it is settled.
    due_at_ms: int | None
    #: Why the last attempt failed: `http_500`, `timeout` …; empty after none.
    last_error: str
    #: Whether a deliverer is sending it now.
    is_in_flight: bool
    #: Whether its endpoint is paused, so that it waits until the operator resumes the endpoint.
    is_paused: bool
    #: The last twenty attempts, oldest first.
    log: tuple[Attempt, ...]


class Deliveries:
    """Reads deliveries. Owns nothing but the store it is given.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: JobStore) -> None:
        """Bind to a store."""
        self._store = store

    def event(self, event_id: str) -> EventStatus | None:
        """Return an event; None if it does not exist or its time to live has run out."""
        return next(iter(self._load([event_id])), None)

    def waiting(self, *, limit: int = 1000) -> tuple[list[EventStatus], int]:
        """Return the events that wait for delivery, oldest first, and how many are left out."""
        client = self._store.client
        names = readable_names(cast(Any, client.zrange(keys.OUTBOX, 0, limit - 1)))
        total = client.zcard(keys.OUTBOX)
        events = [event for event in self._load(names) if event.state == "pending"]
        return sorted(events, key=_order), max(0, total - limit)

    def of_job(self, job_id: str) -> list[EventStatus]:
        """Return the events of a job or batch that are kept, in the order of their creation.

        Of a job with more than a hundred runs or `output` events, the latest hundred of each.
        """
        found = self._load(list(self._names_of(job_id)))
        return sorted((event for event in found if event.job_id == job_id), key=_order)

    def of_receiver(self, receiver_id: str, *, limit: int = 100) -> list[EventStatus]:
        """Return the latest events for a registered receiver, in the order of their creation."""
        client, names = self._store.client, list[str]()
        for index in (keys.OUTBOX, keys.SETTLED_EVENTS):
            start, num_found = 0, 0
            while num_found < limit:
                page = cast(Any, client.zrevrange(index, start, start + _SCAN - 1))
                found = [x for x in readable_names(page) if x.endswith(f"_{receiver_id}")]
                names += found[: limit - num_found]
                num_found += len(found)
                start += _SCAN
                if len(page) < _SCAN:
                    break
        return sorted(self._load(names), key=_order)[-limit:]

    def _names_of(self, job_id: str) -> Iterator[str]:
        """Yield the ids that events of a job may have; most are not stored, but numbered."""
        with self._store.client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(keys.job(job_id), "run", "output_events", "receiver_events")
            pipeline.hmget(keys.leftover(job_id), "run", "num_outputs", "receiver_events")
            replies = [stored(x, default=[]) for x in pipeline.execute(raise_on_error=False)]
        listed = (text.decode(errors="replace") for *_, text in filter(None, replies) if text)
        yield from dict.fromkeys(name for text in listed for name in text.split(",") if name)
        num_runs = max(1, *(_number(fields[:1]) for fields in replies))
        num_outputs = max(_number(fields[1:2]) for fields in replies)
        for run in range(max(1, num_runs - _MAX_RUNS + 1), num_runs + 1):
            suffix = "" if run == 1 else f"_run{run}"
            for name in ("started", *END_EVENTS):
                yield f"evt_{job_id}_{name}{suffix}"
        for number in range(max(1, num_outputs - _MAX_OUTPUTS + 1), num_outputs + 1):
            yield f"evt_{job_id}_output_{number}"

    def _load(self, event_ids: Sequence[str]) -> list[EventStatus]:
        """Return those events that exist and can be read."""
        client = self._store.client
        with client.pipeline(transaction=False) as pipeline:
            for event_id in event_ids:
                pipeline.hgetall(keys.event(event_id))
            replies = pipeline.execute(raise_on_error=False)
        found = [_decoded(stored(reply, default={})) for reply in replies]
        found = [fields for fields in found if {"id", "type", "url"} <= fields.keys()]
        with client.pipeline(transaction=True) as pipeline:
            for fields in found:
                endpoint = _endpoint(fields)
                class_ = "replay" if "replay" in fields else "live"
                pipeline.zscore(keys.due_events(class_, endpoint), fields["id"])
                pipeline.hget(keys.endpoint(endpoint), "open_until_ms")
                claims = keys.host_claims(host_of_endpoint(endpoint))
                pipeline.zscore(claims, f"{fields['id']}\n{endpoint}")
            pipeline.time()
            *queued, (now_s, _) = pipeline.execute(raise_on_error=False)
        paused = {
            pause.name
            for pause in self._store.read(all_pauses())
            if pause.kind is PauseKind.ENDPOINT
        }
        events = []
        for fields, place in zip(found, zip(*[iter(queued)] * 3, strict=True), strict=True):
            with contextlib.suppress(KeyError, ValueError):  # data that batchmill did not write
                event = _event(fields, *map(stored, place), now_ms=int(now_s) * 1000, paused=paused)
                events.append(event)
        return events


def _order(event: EventStatus) -> tuple[int, str]:
    return event.created_at_ms, event.id


def _number(fields: Sequence[Any]) -> int:
    text = fields[0] if fields else None
    return int(text) if isinstance(text, bytes) and text.isdigit() else 0


def _decoded(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in fields.items()
        if name != b"body"
    }


def _endpoint(fields: Mapping[str, str]) -> str:
    return endpoint_of(fields["url"], fields.get("tenant", keys.DEFAULT_TENANT))


def _event(
    fields: Mapping[str, str],
    due_at_ms: Any,
    open_until_ms: Any,
    lease_ends_ms: Any,
    *,
    now_ms: int,
    paused: set[str],
) -> EventStatus:
    if due_at_ms is not None and open_until_ms is not None:
        due_at_ms = max(float(due_at_ms), float(open_until_ms))
    return EventStatus(
        id=fields["id"],
        type=fields["type"],
        job_id=fields["job_id"],
        url=fields["url"],
        tenant=fields.get("tenant", keys.DEFAULT_TENANT),
        state=fields["state"],
        attempts=int(fields["attempts"]),
        created_at_ms=int(float(fields["created_at_ms"])),
        due_at_ms=None if due_at_ms is None else int(due_at_ms),
        last_error="" if fields["state"] == "delivered" else fields.get("last_error", ""),
        is_in_flight=lease_ends_ms is not None and float(lease_ends_ms) > now_ms,
        is_paused=due_at_ms is not None and _endpoint(fields) in paused,
        log=tuple(_attempt(line) for line in fields.get("log", "").splitlines()),
    )


def _attempt(line: str) -> Attempt:
    at_ms, status, reason, duration_ms = line.split(",")
    return Attempt(int(at_ms), int(status) if status else None, reason, int(duration_ms))
