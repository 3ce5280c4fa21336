"""Signing and sending an event that only tests a receiver: at once, and without retries."""

from __future__ import annotations

import json
import secrets as randomness
import time
from collections.abc import Sequence
from typing import Any

from batchmill.producer.webhook.signature import signature_headers

from .payload import format_moment
from .sender import SendOutcome, WebhookSender


def new_test_id() -> str:
    """Return an event id that no event of a job has."""
    return f"evt_test_{randomness.token_hex(10)}"


def now_text() -> str:
    """Return the time as events have it."""
    return format_moment(time.time_ns() // 1_000_000)


async def send_test_event(
    sender: WebhookSender, url: str, event_id: str, event: Any, secrets: Sequence[str]
) -> SendOutcome:
    """Send an event by the same rules as every delivery.

    Args:
        sender: makes the HTTP request.
        url: the receiver.
        event_id: of the event.
        event: JSON of the body.
        secrets: each signs once.
    """
    body = json.dumps(event).encode()
    headers = signature_headers(event_id, int(time.time()), body, secrets=secrets)
    return await sender.send(url, body, headers | {"x-attempt": "1"})
