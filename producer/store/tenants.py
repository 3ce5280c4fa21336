"""Tenants as the operator sees them: weights, limits, and their waiting jobs.

Weights and limits are kept in Redis and apply from the next call, for all producers and workers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from batchmill.producer.errors import TenantRefused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import readable_names, stored
from batchmill.producer.protocol.calls.pauses import all_pauses
from batchmill.producer.protocol.pauses import Pause, PauseKind

from .job_store import JobStore

#: Tokens are divided by the weight when charged; beyond these, virtual time would lose precision.
MIN_WEIGHT = 0.01
MAX_WEIGHT = 1000.0
MAX_WINDOW_JOBS = 1000


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The operator's settings for a tenant."""

    #: Share of the tokens, relative to the other waiting tenants.
    weight: float = 1.0
    #: Most waiting jobs; None is unlimited.
    max_jobs: int | None = None
    #: Most bytes of waiting job documents, and of the longest outputs of unfinished jobs.
    max_bytes: int | None = None
    #: Most waiting tokens: prompts (estimated) and the longest outputs together.
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """A tenant's waiting jobs, in all queues."""

    jobs: int = 0
    #: Of waiting documents, and what the outputs of waiting and running jobs may take.
    bytes: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant: its settings and its waiting jobs."""

    name: str
    limits: TenantLimits
    usage: TenantUsage
    #: Its jobs wait until it is resumed.
    pause: Pause | None = None


_LIMIT_NAMES = tuple(field.name for field in fields(TenantLimits))
_USAGE_NAMES = tuple(field.name for field in fields(TenantUsage))
_COUNTERS_OF_TENANTS = tuple(f"{name}:" for name in (*_USAGE_NAMES, "reserved"))


def list_tenants(store: JobStore) -> list[Tenant]:
    """Return the tenants that have waiting jobs or settings or are paused, by name."""
    settings, usage = _read(store)
    pauses = _pauses(store)
    names = set(pauses) | {field.partition(":")[0] for field in settings}
    names |= {field.partition(":")[2] for field in usage if field.startswith(_COUNTERS_OF_TENANTS)}
    return [
        replace(_tenant(name, settings, usage), pause=pauses.get(name)) for name in sorted(names)
    ]


def joined_tenants(parts: Iterable[Iterable[Tenant]]) -> list[Tenant]:
    """Return the tenants of all shards, by name: their jobs are summed up.

    Settings are the same in all shards, unless one was away when they changed: the first counts.
    """
    found: dict[str, Tenant] = {}
    for tenant in (each for part in parts for each in part):
        known = found.get(tenant.name)
        found[tenant.name] = tenant if known is None else _joined(known, tenant)
    return [found[name] for name in sorted(found)]


def joined_tenant(parts: Sequence[Tenant], name: str) -> Tenant:
    """Return one tenant as all shards have it; without settings and jobs if none replied."""
    return next(
        iter(joined_tenants([part] for part in parts)), Tenant(name, TenantLimits(), TenantUsage())
    )


def load_tenant(store: JobStore, name: str) -> Tenant:
    """Return one tenant; any valid name is a tenant, with weight 1 and no limits by default.

    Raises:
        TenantRefused: the name is invalid.
    """
    _check_name(name)
    return replace(_tenant(name, *_read(store)), pause=_pauses(store).get(name))


def set_tenant(store: JobStore, name: str, changes: Mapping[str, float | int]) -> Tenant:
    """Change a tenant's weight or limits; those that are not named stay.

    Args:
        store: the job store.
        name: the tenant.
        changes: fields of `TenantLimits`.

    Raises:
        TenantRefused: the name, the weight or a limit is invalid.
    """
    _check_name(name)
    replace(TenantLimits(), **cast(Any, dict(changes)))  # an unknown field is a bug in the caller
    for field, value in changes.items():
        least, most = (MIN_WEIGHT, MAX_WEIGHT) if field == "weight" else (1, 2**53)
        if not least <= value <= most:
            raise TenantRefused(f"{field} is {value}; it must be from {least} to {most}")
    if changes:
        store.client.hset(
            keys.TENANTS, mapping={f"{name}:{field}": value for field, value in changes.items()}
        )
    return load_tenant(store, name)


def unset_tenant(store: JobStore, name: str) -> bool:
    """Remove all settings of a tenant; return False if there were none.

    Raises:
        TenantRefused: the name is invalid.
    """
    _check_name(name)
    return bool(store.client.hdel(keys.TENANTS, *(f"{name}:{field}" for field in _LIMIT_NAMES)))


def read_window(store: JobStore) -> int:
    """Return how many messages a queue's list may hold."""
    return int(cast(Any, store.client.get(keys.WINDOW)) or keys.DEFAULT_WINDOW_JOBS)


def set_window(store: JobStore, num_jobs: int) -> None:
    """Set how many messages a queue's list may hold.

    A late job waits for at least that many others; workers far from Redis need more.

    Raises:
        TenantRefused: the number is out of range.
    """
    if not 1 <= num_jobs <= MAX_WINDOW_JOBS:
        raise TenantRefused(f"window is {num_jobs}; it must be from 1 to {MAX_WINDOW_JOBS}")
    store.client.set(keys.WINDOW, num_jobs)


def _joined(first: Tenant, other: Tenant) -> Tenant:
    sums = (getattr(first.usage, name) + getattr(other.usage, name) for name in _USAGE_NAMES)
    has_limits = first.limits != TenantLimits()
    return Tenant(
        first.name,
        first.limits if has_limits else other.limits,
        TenantUsage(*sums),
        first.pause or other.pause,
    )


def _check_name(name: str) -> None:
    if not keys.is_tenant_name(name):
        raise TenantRefused(
            f"{name[:80]!r} is not a tenant name: it must be 1 to 64 letters, digits, _ . and -"
        )


def _pauses(store: JobStore) -> dict[str, Pause]:
    pauses = store.read(all_pauses())
    return {pause.name: pause for pause in pauses if pause.kind is PauseKind.TENANT}


def _read(store: JobStore) -> tuple[dict[str, float], dict[str, float]]:
    with store.client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(keys.TENANTS)
        pipeline.hgetall(keys.USAGE)
        settings, usage = pipeline.execute(raise_on_error=False)
    return _read_numbers(settings), _read_numbers(usage)


def _read_numbers(reply: Any) -> dict[str, float]:
    """Return the fields of a hash that are numbers: one that is not must not hide the others."""
    fields, numbers = stored(reply, default={}), {}
    for name in readable_names(fields):
        with contextlib.suppress(ValueError):
            numbers[name] = float(fields[name.encode()])
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _tenant(name: str, settings: Mapping[str, float], usage: Mapping[str, float]) -> Tenant:
    given = {field: settings.get(f"{name}:{field}") for field in _LIMIT_NAMES}
    numbers = {
        field: value if field == "weight" else int(value)
        for field, value in given.items()
        if value is not None
    }
    waiting = {field: int(usage.get(f"{field}:{name}", 0)) for field in _USAGE_NAMES}
    waiting["bytes"] += int(usage.get(f"reserved:{name}", 0))
    return Tenant(name, TenantLimits(**cast(Any, numbers)), TenantUsage(**waiting))
