"""The body of a webhook: the event without the prompt, and with the output only on request."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from batchmill.producer.errors import ContentChanged
from batchmill.producer.job.batch import BatchStatus
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.protocol.records import JobRecord

#: Longest output, tool calls and answers included, that goes into an event; longer ones are
#: fetched by job id.
MAX_OUTPUT_BYTES = 16 * 1024
_IN_PROGRESS = ("started", "output")


def render_body(entry: OutboxEntry, record: JobRecord | None) -> bytes:
    """Return the body of a job's event. It is stored, and every attempt sends the same bytes.

    Args:
        entry: the event.
        record: the job's record, or None if it has been deleted; the body then says only which
            job ended and how.

    Raises:
        UnreadableContent: the record is sealed with a key that this program does not have, or its
            content is in an object store and cannot be read. One that was changed counts as
            deleted.
    """
    if record is not None and record.unreadable is not None:
        if not isinstance(record.unreadable, ContentChanged):
            raise record.unreadable
        record = None
    name = entry.type.removeprefix("generation.")
    has_ended = name not in _IN_PROGRESS
    data: dict[str, Any] = {
        "id": entry.job_id,
        "object": "generation",
        "status": name if has_ended else "in_progress",
        "model": None,
        "finish_reason": None,
        "usage": None,
        "tenant": None,
        "tags": [],
        "metadata": {},
        "error": None,
        "attempts": [],
        "created_at": None,
        "started_at": None,
        "finished_at": _iso(entry.created_at_ms) if has_ended else None,
    }
    if entry.num_tokens is not None:
        data["progress"] = {"output_tokens": entry.num_tokens}
    if record is not None:
        document = json.loads(record.document)
        data |= {
            "model": record.model,
            "tenant": record.tenant,
            "tags": list(record.tags),
            "metadata": document.get("metadata") or {},
            "created_at": _iso(record.enqueued_at_ms),
            "started_at": _iso(record.started_at_ms),
        }
        # Otherwise the event predates the end, or a retry has cleared it.
        if has_ended and record.state.value == name:
            data |= _end_fields(record, include_output=document.get("include_output", False))
    return _event(entry, data)


def render_batch_body(entry: OutboxEntry, batch: BatchStatus | None) -> bytes:
    """Return the body of a batch's event: only its state and counts.

    Args:
        entry: the event.
        batch: the batch, or None if it has been deleted.
    """
    data: dict[str, Any] = {
        "id": entry.job_id,
        "object": "batch",
        "status": entry.type.removeprefix("batch."),
        "request_counts": None,
        "errors": None,
        "metadata": {},
        "created_at": None,
        "finished_at": _iso(entry.created_at_ms),
    }
    if batch is not None:
        data |= {
            "request_counts": batch.request_counts.model_dump(),
            "errors": None if batch.errors is None else batch.errors.model_dump(),
            "metadata": batch.metadata,
            "created_at": _iso(batch.created_at * 1000),
        }
    return _event(entry, data)


def render_response_body(entry: OutboxEntry) -> bytes:
    """Return the body of the event of a background response: only its id, as OpenAI sends it."""
    return _event(entry, {"id": f"resp_{entry.job_id.removeprefix('gen_')}"})


def _event(entry: OutboxEntry, data: dict[str, Any]) -> bytes:
    """Return an event; those for registered receivers have OpenAI's fields as well."""
    event: dict[str, Any] = {"type": entry.type, "timestamp": _iso(entry.created_at_ms)}
    if entry.receiver_id is not None:
        event |= {"id": entry.event_id, "object": "event"}
        event["created_at"] = entry.created_at_ms // 1000
    event["data"] = data
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _end_fields(record: JobRecord, *, include_output: bool) -> dict[str, Any]:
    result = json.loads(record.result) if record.result else {}
    end: dict[str, Any] = {
        "finish_reason": result.get("finish_reason"),
        "usage": result.get("usage"),
        "error": json.loads(record.error) if record.error else None,
        "attempts": [_attempt(attempt) for attempt in record.history],
    }
    if result.get("watermarked"):
        end["watermarked"] = True
    if include_output and result.get("text") is not None:
        end |= _output(result)
    return end


def _output(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's text, with its tool calls or answers; null for each if it is too long."""
    text: str = result["text"]
    parts = {name: result[name] for name in ("tool_calls", "decision") if result.get(name)}
    num_bytes = len(text.encode()) + sum(len(json.dumps(part)) for part in parts.values())
    if num_bytes > MAX_OUTPUT_BYTES:
        return {"output": None, "truncated": True, **dict.fromkeys(parts)}
    return {"output": text, "truncated": False, **parts}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt without its worker: a receiver must not learn names of machines."""
    return {
        "attempt": attempt.attempt,
        "started_at": _iso(attempt.claimed_at_ms),
        "finished_at": _iso(attempt.ended_at_ms),
        "output_tokens": attempt.tokens_at_end,
        "cause": attempt.cause,
        "code": attempt.code,
    }


def host_of(url: str) -> str:
    """Return host and port of a URL, for limits and logs: paths and queries may hold secrets."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "invalid"


def format_moment(unix_ms: int) -> str:
    """Return milliseconds of unix time as ISO 8601 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso(unix_ms: int | None) -> str | None:
    return None if unix_ms is None else format_moment(unix_ms)
