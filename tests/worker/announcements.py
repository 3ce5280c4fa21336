"""Announcements, for tests that push them into queues."""

from __future__ import annotations

import json
import time
from typing import Any

from batchmill.producer.protocol import keys

QUEUE = "batchmill.demo.normal"


def announcement(job_id: str, **changes: Any) -> bytes:
    """Return an announcement as the submit script writes it, with top-level changes."""
    message = {
        "body": json.dumps([[], {"job": job_id, "v": 1}, {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": keys.TASK_NAME, "id": job_id, "ignore_result": True},
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_tag": f"tag-{time.monotonic_ns()}",
        },
    }
    return json.dumps({**message, **changes}).encode()
