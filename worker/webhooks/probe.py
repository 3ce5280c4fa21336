"""One signed test event to a receiver, sent at once and without retries."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from batchmill.worker.service_errors import NoWebhookSecret

from .reasons import explain
from .sample_event import new_test_id, now_text, send_test_event
from .sender import WebhookSender
from .settings import WebhookSettings


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The outcome of a test event."""

    event_id: str
    delivered: bool
    #: None if no response came.
    http_status: int | None
    #: As in an event's log: `http_200`, `timeout`, `refused_address` …
    reason: str
    #: The reason in words, with the remedy.
    explanation: str
    duration_ms: int


def send_probe(url: str, settings: WebhookSettings, *, secret_name: str = "") -> ProbeResult:
    """Send a `webhook.test` event by the same rules as every delivery.

    Args:
        url: the receiver.
        settings: secrets, limits and allowed targets.
        secret_name: of one of the operator's secrets; empty for the default one.

    Raises:
        NoWebhookSecret: the secret does not exist.
    """
    own = settings.secrets_named(secret_name)
    if not own:
        known = ", ".join(sorted(settings.webhook_secrets)) or "none"
        raise NoWebhookSecret(
            f"no secret {secret_name!r} in BATCHMILL_WEBHOOK_SECRETS, which names: {known}"
            if secret_name
            else "BATCHMILL_WEBHOOK_SECRET is not set, and `batchmill up` has made no secret here: "
            "set it to the deliverer's, or make one with `batchmill webhook-secret`"
        )
    event_id = new_test_id()
    # With an id, as in every event: receivers that read it need no exception for a test.
    data = {"id": event_id, "object": "webhook.test"}
    event = {"type": "webhook.test", "timestamp": now_text(), "data": data}
    start_s = time.monotonic()
    sender = WebhookSender.from_settings(settings)
    outcome = asyncio.run(send_test_event(sender, url, event_id, event, own))
    return ProbeResult(
        event_id=event_id,
        delivered=outcome.delivered,
        http_status=outcome.status,
        reason=outcome.reason,
        explanation=explain(outcome.reason, url),
        duration_ms=round((time.monotonic() - start_s) * 1000),
    )
