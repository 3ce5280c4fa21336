"""The status of a job (`JobStatus`): the fields that make it, the read, and the parsing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import read_history, running_attempt
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_parts import JobError
from batchmill.producer.results import JobStatus

#: Fields that any client of Redis may have overwritten without harm to the rest of the status.
HISTORY_FIELDS: Final = ("claimed_at_ms", "claimed_tokens", "history")
#: Fields of a status; never the document or the result, which may be a megabyte.
STATUS_FIELDS: Final = (
    *("model", "state", "cancel_requested", "attempts", "run", "owner", "tags", "tenant"),
    *("enqueued_at_ms", "started_at_ms", "finished_at_ms", "deadline_at_ms", "not_before_ms"),
    *("error", "fence", "claim_nonce", "retries", "retry_error", "retry_fence", *HISTORY_FIELDS),
)


def job_status(job_id: str) -> Read[JobStatus | None]:
    """Read the status of a job; None if the job is unknown."""

    def queue(pipeline: Any) -> None:
        pipeline.hmget(keys.job(job_id), STATUS_FIELDS)
        pipeline.strlen(keys.tokens(job_id))

    def parse(replies: Sequence[Any]) -> JobStatus | None:
        if isinstance(replies[0], ResponseError):
            raise replies[0]  # the key is not a record; `broker_errors` says so
        return readable_status(job_id, *replies)

    return Read(queue, parse, is_atomic=True, keeps_errors=True)


def job_statuses(job_ids: Sequence[str]) -> Read[list[JobStatus | None]]:
    """Read the statuses of jobs in order; None for one that is unknown, or not batchmill's."""

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            job_status(job_id).queue(pipeline)

    def parse(replies: Sequence[Any]) -> list[JobStatus | None]:
        return list(map(readable_status, job_ids, replies[::2], replies[1::2]))

    return Read(queue, parse, is_atomic=True, keeps_errors=True)


def readable_status(job_id: str, values: Any, num_bytes: Any) -> JobStatus | None:
    """Return a status as `read_status`; None also if batchmill did not write the record."""
    try:
        values = stored(values, default=(None,) * len(STATUS_FIELDS))
        return read_status(job_id, values, stored(num_bytes, default=0))
    except (KeyError, ValueError):
        return None


def read_status(job_id: str, values: Sequence[bytes | None], num_bytes: int) -> JobStatus | None:
    """Return the status in the values of `STATUS_FIELDS`; None if there is no record.

    Args:
        job_id: the job.
        values: one per field, in their order; None or empty if the record lacks it.
        num_bytes: length of the job's tokens.
    """
    raw = dict(zip(STATUS_FIELDS, values, strict=True))
    fields = {
        name: value.decode() for name, value in raw.items() if value and name not in HISTORY_FIELDS
    }
    if "state" not in fields:
        return None
    state = JobState(fields["state"])
    # A claim after the failed attempt has another fence.
    fence = f"{fields.get('fence')}.{fields.get('claim_nonce')}"
    is_retrying = state is JobState.QUEUED and fields.get("retry_fence") == fence
    attempts = _number(fields, "attempts") or 0
    history = list(read_history(raw["history"]))
    if state is JobState.IN_PROGRESS:
        history.append(running_attempt(raw))
    return JobStatus(
        id=job_id,
        model=fields["model"],
        state=state,
        cancelling=fields.get("cancel_requested") == "1" and not state.is_terminal,
        output_tokens=num_bytes // 4,
        attempts=attempts,
        history=history,
        attempts_left_out=max(0, attempts - len(history)),
        run=_number(fields, "run") or 1,
        retries=_number(fields, "retries") or 0,
        retry_at_ms=_number(fields, "not_before_ms") if is_retrying else None,
        retry_error=_error(fields.get("retry_error")) if is_retrying else None,
        tenant=fields.get("tenant", keys.DEFAULT_TENANT),
        tags=fields["tags"].split(",") if "tags" in fields else [],
        worker=fields.get("owner"),
        enqueued_at_ms=_number(fields, "enqueued_at_ms") or 0,
        started_at_ms=_number(fields, "started_at_ms"),
        finished_at_ms=_number(fields, "finished_at_ms"),
        deadline_at_ms=_number(fields, "deadline_at_ms"),
        scheduled_at_ms=_number(fields, "not_before_ms"),
        error=_error(fields.get("error")),
    )


def _error(text: str | None) -> JobError | None:
    return None if text is None else JobError.model_validate_json(text)


def _number(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if name in fields else None
