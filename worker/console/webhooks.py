"""Webhooks: endpoints and receivers, what waits for them, and each event with its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchmill.producer.protocol.outbox import RedeliverStatus
from batchmill.producer.store.api_keys import list_api_keys
from batchmill.producer.store.deliveries import Deliveries, EventStatus
from batchmill.producer.store.endpoints import Endpoint, Endpoints
from batchmill.producer.store.receivers import Receiver, load_receivers
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
    store, viewer = visit.site.store, visit.viewer
    endpoints, num_more = Endpoints(store).page(limit=_MAX_READ)
    waiting, num_left_out = Deliveries(store).waiting(limit=_MAX_READ)
    waiting = [event for event in waiting if viewer.sees(event.tenant)]
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
    endpoints, client = Endpoints(visit.site.store), visit.site.client
    match visit.form.get("action"):
        case "pause":
            by = visit.viewer.key.name if visit.viewer.key.id else "console"
            client.pause(endpoint=url, tenant=tenant, by=by)
            return Redirect("/webhooks", "paused")
        case "resume":
            client.resume(endpoint=url, tenant=tenant)
            return Redirect("/webhooks", "resumed")
        case "enable":
            endpoints.enable(url, tenant=tenant)
            return Redirect("/webhooks", "enabled")
        case "disable":
            endpoints.disable(url, tenant=tenant)
            return Redirect("/webhooks", "disabled")
        case "redeliver":
            endpoints.redeliver_all(url, tenant=tenant)
            return Redirect("/webhooks", "all-redelivered")
    raise ConsoleError(400, "The form has no action that this page knows.")


def show_event(visit: Visit) -> Reply:
    """Show an event with its attempts."""
    event = _event(visit)
    endpoint: Endpoint = Endpoints(visit.site.store).get(event.url, tenant=event.tenant)
    told = explain(event.last_error, event.url) if event.last_error else ""
    return Page("event.html", {"event": event, "endpoint": endpoint, "explanation": told})


def redeliver(visit: Visit) -> Reply:
    """Send an event again, with the same id and body."""
    require(visit.viewer.may_administer, "admin")
    event = _event(visit)
    status = visit.site.store.outbox_redeliver(event.id)
    if status is RedeliverStatus.UNKNOWN:
        raise not_found("event", event.id)
    if status is RedeliverStatus.DISABLED:
        raise ConsoleError(409, "The endpoint of this event is disabled: enable it first.")
    done = "waiting" if status is RedeliverStatus.PENDING else "redelivered"
    return Redirect(f"/webhooks/events/{event.id}", done)


def _event(visit: Visit) -> EventStatus:
    """Return the event of a path.

    Raises:
        ConsoleError: there is none, or it belongs to another tenant.
    """
    event_id = visit.path["event_id"]
    event = Deliveries(visit.site.store).event(event_id[:300])
    if event is None or not visit.viewer.sees(event.tenant):
        raise not_found("event", event_id)
    return event


def _receivers(visit: Visit) -> Sequence[ReceiverRow]:
    """Return the receivers of the viewer's tenant; of all known tenants for an operator."""
    store, own = visit.site.store, visit.viewer.tenant
    tenants = {own} if own is not None else {visit.viewer.key.tenant}
    if own is None:
        tenants |= {tenant.name for tenant in list_tenants(store)}
        tenants |= {key.tenant for key in list_api_keys(store)}
    return [
        ReceiverRow(tenant, receiver)
        for tenant in sorted(tenants)
        for receiver in store.read(load_receivers(tenant))
    ]
