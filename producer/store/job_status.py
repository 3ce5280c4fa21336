"""The status of a job (`JobStatus`): the fields that make it, the read, and the parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobError, JobStatus

#: Fields of a status; never the document or the result, which may be a megabyte.
STATUS_FIELDS: Final = (
    *("model", "state", "cancel_requested", "attempts", "run", "owner", "tags", "tenant"),
    *("enqueued_at_ms", "started_at_ms", "finished_at_ms", "deadline_at_ms", "not_before_ms"),
    "error",
)


def job_status(job_id: str) -> Read[JobStatus | None]:
    """Read the status of a job; None if the job is unknown."""

    def queue(pipeline: Any) -> None:
        pipeline.hmget(keys.job(job_id), STATUS_FIELDS)
        pipeline.strlen(keys.tokens(job_id))

    return Read(queue, lambda replies: read_status(job_id, *replies), is_atomic=True)


def read_status(job_id: str, values: Sequence[bytes | None], num_bytes: int) -> JobStatus | None:
    """Return the status in the values of `STATUS_FIELDS`; None if there is no record.

    Args:
        job_id: the job.
        values: one per field, in their order; None or empty if the record lacks it.
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
