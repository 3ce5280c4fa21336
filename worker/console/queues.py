"""Queues and tenants: what waits, each tenant's share, and pausing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import Pause, PauseKind, joined_pauses
from batchmill.producer.protocol.store_counts import QueueDepth
from batchmill.producer.store.every_shard import EveryShard
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.pauses import Pauses
from batchmill.producer.store.tenants import (
    Tenant,
    TenantLimits,
    TenantUsage,
    joined_tenants,
    list_tenants,
)
from batchmill.producer.store.usage_sums import grouped, usage_sums
from batchmill.worker.metrics.joined_fleet import joined_depths

from .fleet import share
from .visit import ConsoleError, Page, Redirect, Reply, Visit, require

_MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue on the page."""

    depth: QueueDepth
    workers: int
    pause: Pause | None


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant on the page."""

    tenant: Tenant
    #: Tokens of its jobs that ended today (UTC), and their share of all tenants' tokens.
    tokens_today: int
    share_today: float | None


def show_queues(visit: Visit) -> Reply:
    """Show all queues and tenants; to others than operators, their own tenant."""
    shards, own = visit.shards, visit.viewer.tenant
    tenants = [row for row in _tenants(shards) if own is None or row.tenant.name == own]
    queues = _queues(shards) if own is None else []
    return Page("queues.html", {"queues": queues, "tenants": tenants})


def change_pause(visit: Visit) -> Reply:
    """Pause or resume a queue or a tenant."""
    require(visit.viewer.is_operator, "operator")
    kind, name, action = (visit.form.get(field, "") for field in ("kind", "name", "action"))
    if kind not in ("queue", "tenant") or not name:
        raise ConsoleError(400, "Give a queue or a tenant.")
    queue, tenant = (name, None) if kind == "queue" else (None, name)
    client, reason = visit.site.client, visit.form.get("reason", "").strip()
    match action:
        case "resume":
            client.resume(queue=queue, tenant=tenant)
            return Redirect("/queues", "resumed")
        case "pause" if len(reason) > _MAX_REASON_CHARS:
            told = f"The reason has {len(reason)} characters; the limit is {_MAX_REASON_CHARS}."
            raise ConsoleError(400, told)
        case "pause":
            by = visit.viewer.key.name if visit.viewer.key.id else "console"
            client.pause(queue=queue, tenant=tenant, by=by, reason=reason)
            return Redirect("/queues", "paused")
    raise ConsoleError(400, "The form has no action that this page knows.")


def _queues(shards: EveryShard) -> list[QueueRow]:
    workers = [worker for part in shards.each(JobStore.list_workers) for worker in part]
    served = [queue for worker in workers for queue in worker.queues]
    depths = {each.queue: each for each in joined_depths(shards.each(JobStore.queue_depths))}
    pauses = _pauses(shards, PauseKind.QUEUE)
    names = sorted({*depths, *served, *pauses})
    return [
        QueueRow(depths.get(name, QueueDepth(name, 0, 0)), served.count(name), pauses.get(name))
        for name in names
    ]


def _tenants(shards: EveryShard) -> Sequence[TenantRow]:
    today = datetime.now(UTC).date()
    parts = shards.each(lambda store: store.read(usage_sums(today, today)))
    used = {
        str(each.tenant) or keys.DEFAULT_TENANT: each.amounts
        for each in grouped((each for part in parts for each in part), ["tenant"])
    }
    tokens = {name: each.prompt_tokens + each.completion_tokens for name, each in used.items()}
    known = {tenant.name: tenant for tenant in joined_tenants(shards.each(list_tenants))}
    all_tokens = sum(tokens.values())
    return [
        TenantRow(
            known.get(name) or Tenant(name, TenantLimits(), TenantUsage()),
            tokens.get(name, 0),
            share(tokens.get(name, 0), all_tokens),
        )
        for name in sorted({*known, *tokens})
    ]


def _pauses(shards: EveryShard, kind: PauseKind) -> dict[str, Pause]:
    found = joined_pauses(shards.each(lambda store: Pauses(store).all()))
    return {pause.name: pause for pause in found if pause.kind is kind}
