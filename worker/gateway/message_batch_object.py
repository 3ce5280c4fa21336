"""Anthropic's object of a batch: its state and its counts, which always add up."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from batchmill.producer.job.batch import BatchState
from batchmill.producer.protocol.replies import JobState

from .batch_record import GatewayBatch

#: Anthropic's batches expire after a day.
BATCH_S: Final = 24 * 3600


def message_batch_id(batch_id: str) -> str:
    """Return Anthropic's id of a batch."""
    return f"msgbatch_{batch_id.removeprefix('batch_')}"


def batch_id_of(name: str) -> str:
    """Return the batch of Anthropic's id; another text names no batch."""
    return f"batch_{name[9:]}" if name.startswith("msgbatch_") else "none"


def batch_object(batch: GatewayBatch, states: Mapping[JobState, int]) -> dict[str, Any]:
    """Return Anthropic's object.

    Args:
        batch: the batch.
        states: how many of its jobs are in each state; may be empty if none has failed.
    """
    status, name = batch.status, message_batch_id(batch.id)
    has_ended = status.status.is_terminal
    ended_at = status.finalizing_at if has_ended else None
    phase = "canceling" if status.status is BatchState.CANCELLING else "in_progress"
    return {
        "id": name,
        "type": "message_batch",
        "processing_status": "ended" if has_ended else phase,
        "request_counts": _counts(batch, states),
        "created_at": _moment(status.created_at),
        "expires_at": _moment(status.expires_at or status.created_at + BATCH_S),
        "ended_at": _moment(ended_at),
        "cancel_initiated_at": _moment(status.cancelling_at),
        "archived_at": None,
        "results_url": f"/v1/messages/batches/{name}/results" if has_ended else None,
    }


def _counts(batch: GatewayBatch, states: Mapping[JobState, int]) -> dict[str, int]:
    """Return the counts. They add up to all requests at any moment, as they change one by one."""
    counts = batch.status.request_counts
    canceled, expired = states.get(JobState.CANCELLED, 0), states.get(JobState.EXPIRED, 0)
    errored = max(0, counts.failed - canceled - expired)
    rest = batch.details["num_requests"] - counts.completed - errored - canceled - expired
    if batch.status.status is BatchState.EXPIRED:
        expired, rest = expired + rest, 0  # those that were not read in time
    elif batch.status.status.is_terminal:
        canceled, rest = canceled + rest, 0
    return {
        "processing": rest,
        "succeeded": counts.completed,
        "errored": errored,
        "canceled": canceled,
        "expired": expired,
    }


def _moment(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
