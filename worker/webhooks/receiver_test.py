"""A signed sample event to a registered receiver, sent at once and without retries."""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchmill.producer.webhook.target import TargetPolicy

from .sample_event import new_test_id, now_text, send_test_event
from .sender import SendOutcome, WebhookSender

#: Shorter than those of deliveries: somebody waits for the outcome.
_CONNECT_TIMEOUT_S = 3.0
_TOTAL_TIMEOUT_S = 10.0


async def send_sample(
    url: str, event_type: str, policy: TargetPolicy, secrets: Sequence[str]
) -> SendOutcome:
    """Send a sample of an event by the same rules as every delivery.

    Args:
        url: the receiver.
        event_type: such as `batch.completed`.
        policy: allowed targets.
        secrets: each signs once.
    """
    event_id = new_test_id()
    prefix = {"batch": "batch", "response": "resp"}.get(event_type.partition(".")[0], "gen")
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(time.time()),
        "type": event_type,
        "timestamp": now_text(),
        "data": {"id": f"{prefix}_test"},
    }
    sender = WebhookSender(
        connect_timeout_s=_CONNECT_TIMEOUT_S,
        total_timeout_s=_TOTAL_TIMEOUT_S,
        policy=policy,
        user_agent="batchmill",
    )
    return await send_test_event(sender, url, event_id, event, secrets)
