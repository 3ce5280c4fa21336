"""One signed test event to a receiver, sent at once and without retries."""

from __future__ import annotations

import asyncio
import json
import secrets as randomness
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from batchmill.producer.webhook.signature import signature_headers
from batchmill.worker.service_errors import NoWebhookSecret

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
            else "BATCHMILL_WEBHOOK_SECRET is not set: give the deliverer's (`batchmill up` keeps "
            "it in its state folder, webhook_secret), or make one with `batchmill webhook-secret`"
        )
    event_id = f"evt_test_{randomness.token_hex(10)}"
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = json.dumps({"type": "webhook.test", "timestamp": now, "data": {}}).encode()
    headers = signature_headers(event_id, int(time.time()), body, secrets=own)
    start_s = time.monotonic()
    outcome = asyncio.run(
        WebhookSender.from_settings(settings).send(url, body, headers | {"x-attempt": "1"})
    )
    return ProbeResult(
        event_id=event_id,
        delivered=outcome.delivered,
        http_status=outcome.status,
        reason=outcome.reason,
        duration_ms=round((time.monotonic() - start_s) * 1000),
    )
