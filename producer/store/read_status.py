"""Where jobs are, read from a few fields of their records. No input or output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobError, JobStatus

#: What a status is made of; never the document or the result, which may be a megabyte.
STATUS_FIELDS: Final = (
    *("model", "state", "cancel_requested", "attempts", "run", "owner", "tags", "tenant"),
    *("enqueued_at_ms", "started_at_ms", "finished_at_ms", "deadline_at_ms", "not_before_ms"),
    "error",
)


def queue_status_read(pipeline: Any, job_id: str) -> None:
    """Put the reads of one status on a pipeline (of either kind of client)."""
    pipeline.hmget(keys.job(job_id), STATUS_FIELDS)
    pipeline.strlen(keys.tokens(job_id))


def read_status(job_id: str, values: Sequence[bytes | None], num_bytes: int) -> JobStatus | None:
    """Return the status in the values of `STATUS_FIELDS`, or None where there is no record.

    Args:
        job_id: the job.
        values: one a field, in their order; None or empty where the record lacks it.
        num_bytes: length of the job's tokens.
    """
    fields = {
        name: value.decode()
        for name, value in zip(STATUS_FIELDS, values, strict=True)
        if value is not None and value != b""
    }
    if "state" not in fields:
        return None
    state = JobState(fields["state"])
    error = fields.get("error")
    return JobStatus(
        id=job_id,
        model=fields["model"],
        state=state,
        cancelling=fields.get("cancel_requested") == "1" and not state.is_terminal,
        output_tokens=num_bytes // 4,
        attempts=_number(fields, "attempts") or 0,
        run=_number(fields, "run") or 1,
        tenant=fields.get("tenant", keys.DEFAULT_TENANT),
        tags=fields["tags"].split(",") if "tags" in fields else [],
        worker=fields.get("owner"),
        enqueued_at_ms=_number(fields, "enqueued_at_ms") or 0,
        started_at_ms=_number(fields, "started_at_ms"),
        finished_at_ms=_number(fields, "finished_at_ms"),
        deadline_at_ms=_number(fields, "deadline_at_ms"),
        scheduled_at_ms=_number(fields, "not_before_ms"),
        error=None if error is None else JobError.model_validate_json(error),
    )


def _number(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if name in fields else None
