"""Webhooks: endpoints and receivers, what waits for them, and each event with its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from batchmill.producer.protocol.outbox import RedeliverStatus
from batchmill.producer.store.api_keys import list_api_keys
from batchmill.producer.store.deliveries import Deliveries, EventStatus
from batchmill.producer.store.endpoints import Endpoint, Endpoints, joined_endpoints
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.receivers import Receiver, joined_receivers, load_receivers
from batchmill.producer.store.tenants import list_tenants
from batchmill.worker.webhooks.reasons import explain

from .visit import ConsoleError, Page, Redirect, Reply, Visit, not_found, require

#: Waiting events that are shown, the oldest ones; the page says how many more there are.
MAX_WAITING: Final = 100
#: Endpoints, and waiting events of all tenants, that are looked at.
_MAX_READ = 1000


@dataclass(frozen=True, slots=True)
class ReceiverRow:
    """A registered receiver on the page."""

    tenant: str
    receiver: Receiver


def show_webhooks(visit: Visit) -> Reply:
    """Show endpoints with waiting events, paused and disabled ones, receivers and the outbox."""
    shards, viewer = visit.shards, visit.viewer
    pages = shards.each(lambda store: Endpoints(store).page(limit=_MAX_READ))
    endpoints = joined_endpoints(found for found, _ in pages)
    num_more = sum(number for _, number in pages)
    parts = shards.each(lambda store: Deliveries(store).waiting(limit=_MAX_READ))
    num_left_out = sum(number for _, number in parts)
    found = (event for events, _ in parts for event in events if viewer.sees(event.tenant))
    waiting = sorted(found, key=lambda event: (event.created_at_ms, event.id))
    num_left_out += max(0, len(waiting) - MAX_WAITING)
    values = {
        "endpoints": [each for each in endpoints if viewer.sees(each.tenant)],
        "num_more_endpoints": num_more,
        "receivers": _receivers(visit),
        "waiting": waiting[:MAX_WAITING],
        "num_left_out": num_left_out,
        "explain": explain,
    }
    return Page("webhooks.html", values)


def change_endpoint(visit: Visit) -> Reply:
    """Pause, resume, enable or disable an endpoint, or send again what it did not get."""
    require(visit.viewer.may_administer, "admin")
    url, tenant = visit.form.get("url", ""), visit.form.get("tenant", "")
    if not url or not visit.viewer.sees(tenant):
        raise not_found("webhook endpoint", url)
    shards, client = visit.shards, visit.site.client
    match visit.form.get("action"):
        case "pause":
            by = visit.viewer.key.name if visit.viewer.key.id else "console"
            client.pause(endpoint=url, tenant=tenant, by=by)
            return Redirect("/webhooks", "paused")
        case "resume":
            client.resume(endpoint=url, tenant=tenant)
            return Redirect("/webhooks", "resumed")
        case "enable":
            shards.each(lambda store: Endpoints(store).enable(url, tenant=tenant))
            shards.check()
            return Redirect("/webhooks", "enabled")
        case "disable":
            shards.each(lambda store: Endpoints(store).disable(url, tenant=tenant))
            shards.check()
            return Redirect("/webhooks", "disabled")
        case "redeliver":
            shards.each_long(lambda store: Endpoints(store).redeliver_all(url, tenant=tenant))
            shards.check()
            return Redirect("/webhooks", "all-redelivered")
    raise ConsoleError(400, "The form has no action that this page knows.")


def show_event(visit: Visit) -> Reply:
    """Show an event with its attempts."""
    store, event = _event(visit)
    endpoint: Endpoint = Endpoints(store).get(event.url, tenant=event.tenant)
    told = explain(event.last_error, event.url) if event.last_error else ""
    return Page("event.html", {"event": event, "endpoint": endpoint, "explanation": told})


def redeliver(visit: Visit) -> Reply:
    """Send an event again, with the same id and body."""
    require(visit.viewer.may_administer, "admin")
    store, event = _event(visit)
    status = store.outbox_redeliver(event.id)
    if status is RedeliverStatus.UNKNOWN:
        raise not_found("event", event.id)
    if status is RedeliverStatus.DISABLED:
        raise ConsoleError(409, "The endpoint of this event is disabled: enable it first.")
    done = "waiting" if status is RedeliverStatus.PENDING else "redelivered"
    return Redirect(f"/webhooks/events/{event.id}", done)


def _event(visit: Visit) -> tuple[JobStore, EventStatus]:
    """Return the event of a path, and the store that has it.

    Raises:
        ConsoleError: there is none, or it belongs to another tenant.
    """
    event_id = visit.path["event_id"]
    found = visit.shards.find(lambda store: Deliveries(store).event(event_id[:300]))
    if found is None or not visit.viewer.sees(found[1].tenant):
        raise not_found("event", event_id)
    return found


def _receivers(visit: Visit) -> Sequence[ReceiverRow]:
    """Return the receivers of the viewer's tenant; of all known tenants for an operator."""
    shards, own = visit.shards, visit.viewer.tenant
    tenants = {own} if own is not None else {visit.viewer.key.tenant}
    if own is None:
        tenants |= {tenant.name for part in shards.each(list_tenants) for tenant in part}
        tenants |= {key.tenant for part in shards.each(list_api_keys) for key in part}
    by_tenant = {}
    for tenant in sorted(tenants):
        read = load_receivers(tenant)
        by_tenant[tenant] = shards.each(partial(JobStore.read, read=read))
    return [
        ReceiverRow(tenant, receiver)
        for tenant, parts in by_tenant.items()
        for receiver in joined_receivers(parts)
    ]
