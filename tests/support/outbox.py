"""Looks into the outbox, and changes when an event is due."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import endpoint_of, host_of_endpoint

LANES = (keys.FAST_HOSTS, keys.FIRST_HOSTS, keys.MORE_HOSTS)


def endpoint_of_event(redis: Any, event_id: str) -> str:
    """Return the name of the endpoint of a stored event."""
    url, tenant = redis.hmget(keys.event(event_id), "url", "tenant")
    return endpoint_of(url.decode(), tenant.decode())


def due_ms(redis: Any, event_id: str) -> float | None:
    """Return when an event is due, or its lease ends; None if it does not wait."""
    endpoint = endpoint_of_event(redis, event_id)
    found: float | None = redis.zscore(keys.due_events("live", endpoint), event_id)
    return found


def make_due(redis: Any, event_id: str, at_ms: float = 1.0) -> None:
    """Make a waiting event due at a time in the past, as if the wait for it were over."""
    endpoint = endpoint_of_event(redis, event_id)
    host = host_of_endpoint(endpoint)
    assert redis.zadd(keys.due_events("live", endpoint), {event_id: at_ms}, xx=True, ch=True) == 1
    redis.hdel(keys.endpoint(endpoint), "next_at_ms", "open_until_ms")
    redis.hdel(keys.host(host), "next_at_ms")
    redis.delete(keys.host_claims(host))
    redis.zadd(keys.due_endpoints("live", host), {endpoint: at_ms}, lt=True)
    for lane in LANES:
        redis.zadd(lane, {host: at_ms}, xx=True, lt=True)


def assert_outbox_adds_up(redis: Any, pending: set[str]) -> set[str]:
    """Assert that each waiting event is queued once, and each queue is in the indexes of its host.

    Returns:
        The keys of the outbox.
    """
    queues: dict[str, set[str]] = {}
    for key in redis.scan_iter(match=keys.due_events("*", "*")):
        queues[key.decode()] = {i.decode() for i in redis.zrange(key, 0, -1)}
    queued = [event_id for ids in queues.values() for event_id in ids]
    assert sorted(queued) == sorted(pending)
    hosts: dict[str, set[str]] = {}
    for class_ in ("live", "replay"):
        prefix = keys.due_events(class_, "")
        for endpoint in (key.removeprefix(prefix) for key in queues if key.startswith(prefix)):
            index = keys.due_endpoints(class_, host_of_endpoint(endpoint))
            hosts.setdefault(index, set()).add(endpoint)
    indexes = {
        key.decode(): {i.decode() for i in redis.zrange(key, 0, -1)}
        for key in redis.scan_iter(match=keys.due_endpoints("*", "*"))
    }
    assert indexes == hosts
    lanes = {lane: {i.decode() for i in redis.zrange(lane, 0, -1)} for lane in LANES}
    live = {key.removeprefix(keys.due_endpoints("live", "")) for key in hosts if ":live:" in key}
    assert sorted(host for found in lanes.values() for host in found) == sorted(live)
    replayed = {i.decode() for i in redis.zrange(keys.REPLAY_HOSTS, 0, -1)}
    assert replayed == {
        key.removeprefix(keys.due_endpoints("replay", "")) for key in hosts if ":replay:" in key
    }
    return set(queues) | set(indexes) | {*LANES, keys.REPLAY_HOSTS}
