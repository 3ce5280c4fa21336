"""Webhook endpoints as the operator sees them: what waits for each, and whether it is served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, cast

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import readable_names, stored
from batchmill.producer.protocol.calls.pauses import all_pauses
from batchmill.producer.protocol.outbox import RedeliverStatus, endpoint_of
from batchmill.producer.protocol.pauses import Pause, PauseKind
from batchmill.producer.protocol.records import DeadLetter, DeadLetterKind

from .job_store import JobStore

#: Maximum number of dead letters that are searched for those of one endpoint.
_MAX_LETTERS = 10_000
_LANES = (keys.FAST_HOSTS, keys.FIRST_HOSTS, keys.MORE_HOSTS, keys.REPLAY_HOSTS)
_FIELDS = ("failures", "failing_since_ms", "open_until_ms", "last_error")


class EndpointState(StrEnum):
    """Whether an endpoint gets events."""

    OPEN = "open"
    #: It failed several times in a row: its events wait, and one at a time is tried.
    FAILING = "failing"
    #: It gets nothing until the operator resumes it; its events wait.
    PAUSED = "paused"
    #: It gets nothing until the operator enables it; its events become dead letters.
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A tenant's URL that receives webhooks."""

    tenant: str
    url: str
    state: EndpointState
    #: Events that wait for delivery, those in flight included.
    num_waiting: int
    #: Failed attempts since the last success.
    num_failures: int = 0
    #: Time of the first of them, milliseconds.
    failing_since_ms: int | None = None
    #: With FAILING: time before which nothing is sent, milliseconds.
    next_attempt_at_ms: int | None = None
    #: `http_500`, `timeout` …; empty after a success.
    last_error: str = ""
    #: With DISABLED: `gone` (its response was 410), `no_success_for_120_hours` or `by_operator`.
    disabled_reason: str = ""
    disabled_at_ms: int | None = None
    #: With PAUSED.
    pause: Pause | None = None


def joined_endpoints(parts: Iterable[Iterable[Endpoint]]) -> list[Endpoint]:
    """Return the endpoints of all shards, those with the most waiting events first.

    What waits is summed up; the rest is that of the shard in which the endpoint is worst off.
    """
    found: dict[tuple[str, str], Endpoint] = {}
    for endpoint in (each for part in parts for each in part):
        name = (endpoint.tenant, endpoint.url)
        known = found.get(name)
        if known is not None:
            num_waiting = known.num_waiting + endpoint.num_waiting
            endpoint = replace(max(known, endpoint, key=_badness), num_waiting=num_waiting)
        found[name] = endpoint
    return sorted(found.values(), key=lambda x: (-x.num_waiting, x.url, x.tenant))


def _badness(endpoint: Endpoint) -> tuple[int, int]:
    return list(EndpointState).index(endpoint.state), endpoint.num_failures


class Endpoints:
    """Lists, enables and disables endpoints. Owns nothing but the store it is given.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: JobStore) -> None:
        """Bind to a store."""
        self._store = store

    def page(self, *, limit: int = 1000) -> tuple[list[Endpoint], int]:
        """Return endpoints with waiting events, or paused or disabled; and how many are left out.

        Those with the most waiting events come first.
        """
        paused = [name for kind, name in self._pauses() if kind is PauseKind.ENDPOINT]
        names = list(dict.fromkeys([*self._disabled_names(), *paused, *self._waiting_names()]))
        found = sorted(self._load(names[:limit]), key=lambda x: (-x.num_waiting, x.url, x.tenant))
        return found, max(0, len(names) - limit)

    def get(self, url: str, *, tenant: str = keys.DEFAULT_TENANT) -> Endpoint:
        """Return an endpoint; any URL is one."""
        return next(iter(self._load([endpoint_of(url, tenant)])))

    def disabled(self) -> list[Endpoint]:
        """Return the disabled endpoints, oldest first."""
        found = self._load(self._disabled_names())
        return sorted(found, key=lambda x: (x.disabled_at_ms or 0, x.url, x.tenant))

    def enable(self, url: str, *, tenant: str = keys.DEFAULT_TENANT) -> bool:
        """Enable an endpoint again; return False if it was not disabled.

        Its breaker is closed as well, so waiting events are sent at once. Events that were given up
        meanwhile stay dead letters: see `redeliver_all`.
        """
        return self._store.outbox_set_endpoint(endpoint_of(url, tenant), is_enabled=True)

    def disable(self, url: str, *, tenant: str = keys.DEFAULT_TENANT) -> bool:
        """Disable an endpoint; return False if it was disabled.

        Its waiting and later events become dead letters without an attempt.
        """
        return self._store.outbox_set_endpoint(endpoint_of(url, tenant), is_enabled=False)

    def redeliver_all(self, url: str, *, tenant: str = keys.DEFAULT_TENANT) -> int:
        """Redeliver the dead-letter events of an endpoint; return how many."""
        letters = self._store.dead_letters(limit=_MAX_LETTERS)
        of_webhooks = [letter for letter in letters if letter.kind is DeadLetterKind.WEBHOOK]
        endpoint = endpoint_of(url, tenant)
        return sum(
            self._store.outbox_redeliver(letter.id) is RedeliverStatus.OK
            for letter, owner in zip(of_webhooks, self._tenants(of_webhooks), strict=True)
            if endpoint_of(letter.source, owner) == endpoint
        )

    def _tenants(self, letters: Iterable[DeadLetter]) -> list[str]:
        """Return the tenants of dead-letter events; the default one if an event is gone."""
        with self._store.client.pipeline(transaction=False) as pipeline:
            for letter in letters:
                pipeline.hget(keys.event(letter.id), "tenant")
            replies = pipeline.execute(raise_on_error=False)
        return [_text(stored(reply)) or keys.DEFAULT_TENANT for reply in replies]

    def _pauses(self) -> dict[tuple[PauseKind, str], Pause]:
        return {(pause.kind, pause.name): pause for pause in self._store.read(all_pauses())}

    def _disabled_names(self) -> list[str]:
        return readable_names(cast(Any, self._store.client.hkeys(keys.ENDPOINTS_DISABLED)))

    def _waiting_names(self) -> list[str]:
        with self._store.client.pipeline(transaction=False) as pipeline:
            for lane in _LANES:
                pipeline.zrange(lane, 0, -1)
            lanes = [stored(reply, default=[]) for reply in pipeline.execute(raise_on_error=False)]
        hosts = readable_names({host for lane in lanes for host in lane})
        with self._store.client.pipeline(transaction=False) as pipeline:
            for host in hosts:
                for class_ in ("live", "replay"):
                    pipeline.zrange(keys.due_endpoints(class_, host), 0, -1)
            replies = pipeline.execute(raise_on_error=False)
        return readable_names({name for reply in replies for name in stored(reply, default=[])})

    def _load(self, names: Iterable[str]) -> list[Endpoint]:
        names = list(names)
        with self._store.client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.zcard(keys.due_events("live", name))
                pipeline.zcard(keys.due_events("replay", name))
                pipeline.hmget(keys.endpoint(name), *_FIELDS)
                pipeline.hget(keys.ENDPOINTS_DISABLED, name)
            replies = iter(pipeline.execute(raise_on_error=False))
        groups = zip(names, zip(*[replies] * 4, strict=True), strict=True)
        found = [_endpoint(name, *map(stored, group)) for name, group in groups]
        pauses = self._pauses()
        return [
            replace(endpoint, state=EndpointState.PAUSED, pause=pause)
            if (pause := pauses.get((PauseKind.ENDPOINT, name)))
            and endpoint.state is not EndpointState.DISABLED
            else endpoint
            for name, endpoint in zip(names, found, strict=True)
        ]


def _endpoint(name: str, num_live: Any, num_replayed: Any, state: Any, disabled: Any) -> Endpoint:
    """Return an endpoint; data that batchmill did not write counts as missing."""
    tenant, _, url = name.partition(" ")
    failures, since, open_until, last_error = map(_text, state or [None] * len(_FIELDS))
    at_ms, _, reason = _text(disabled).partition(" ")
    is_open = open_until.isdecimal()
    return Endpoint(
        tenant=tenant,
        url=url,
        state=EndpointState.DISABLED
        if disabled is not None
        else (EndpointState.FAILING if is_open else EndpointState.OPEN),
        num_waiting=(num_live or 0) + (num_replayed or 0),
        num_failures=int(failures) if failures.isdecimal() else 0,
        failing_since_ms=int(since) if since.isdecimal() else None,
        next_attempt_at_ms=int(open_until) if is_open else None,
        last_error=last_error,
        disabled_reason=reason,
        disabled_at_ms=int(at_ms) if at_ms.isdecimal() else (0 if disabled is not None else None),
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
