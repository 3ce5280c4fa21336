"""The body of a webhook: what ended and how, without prompt or output text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from batchmill.producer.answers import JobRecord, OutboxEntry


def render_body(entry: OutboxEntry, record: JobRecord | None) -> bytes:
    """Write an event's body. Done once: it is stored, and every attempt sends the same bytes.

    Args:
        entry: the event.
        record: the job's record, or None where it has been deleted since; the body then tells only
            which job ended and how.
    """
    data: dict[str, Any] = {
        "id": entry.job_id,
        "object": "generation",
        "status": entry.type.removeprefix("generation."),
        "model": None,
        "finish_reason": None,
        "usage": None,
        "metadata": {},
        "error": None,
        "created_at": None,
        "started_at": None,
        "finished_at": _iso(entry.created_at_ms),
    }
    if record is not None:
        result = json.loads(record.result) if record.result else {}
        data |= {
            "model": record.model,
            "finish_reason": result.get("finish_reason"),
            "usage": result.get("usage"),
            "metadata": json.loads(record.document).get("metadata") or {},
            "error": json.loads(record.error) if record.error else None,
            "created_at": _iso(record.enqueued_at_ms),
            "started_at": _iso(record.started_at_ms),
        }
    event = {"type": entry.type, "timestamp": _iso(entry.created_at_ms), "data": data}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def host_of(url: str) -> str:
    """Host and port of a URL, for limits and logs: paths and queries may hold secrets."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "invalid"


def _iso(moment_ms: int | None) -> str | None:
    """A time in ISO 8601, UTC, with milliseconds."""
    if moment_ms is None:
        return None
    moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
