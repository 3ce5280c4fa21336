"""What a caller gets: answers and records turned into values or errors. No input or output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis import exceptions as redis_errors

from .answers import JobState, SubmitStatus, Submitted
from .broker_url import redact
from .calls import NewJob
from .errors import (
    BatchClosed,
    BrokerUnavailable,
    IdempotencyConflict,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobUnfinished,
    QueueFull,
    UnknownBatch,
    UnknownJob,
)
from .results import JobError, JobResult

_ERRORS: dict[JobState, type[JobUnfinished]] = {
    JobState.FAILED: JobFailed,
    JobState.CANCELLED: JobCancelled,
    JobState.EXPIRED: JobExpired,
}

#: Replies of a server that refuses every write for now (its disk is full, its replicas are away);
#: redis-py has no classes for them.
_TAKES_NO_WRITES = ("MISCONF", "NOREPLICAS")


def accepted_id(job: NewJob, answer: Submitted) -> str:
    """Return the id of the job that stands for a submission.

    Raises:
        IdempotencyConflict: the key stands for other content.
        QueueFull: the queue has reached its depth limit, or Redis its memory limit.
        BatchClosed: the job's batch takes no more lines.
    """
    if answer.status is SubmitStatus.CLOSED and job.batch is not None:
        raise closed(job.batch.batch_id, answer.batch_state)
    if answer.job_id is None:
        raise _full(job, answer.queue_depth)
    if answer.status is SubmitStatus.CONFLICT:
        if job.idempotency_key is None and job.batch is not None:
            raise IdempotencyConflict(
                f"line {job.batch.index + 1} of batch {job.batch.batch_id} is job {answer.job_id}, "
                "which has other content; use a new key for another input",
                job_id=answer.job_id,
            )
        raise IdempotencyConflict(
            f"idempotency_key {job.idempotency_key!r} stands for job {answer.job_id}, which has "
            "other content; use a new key for a new job",
            job_id=answer.job_id,
        )
    return answer.job_id


def _full(job: NewJob, queue_depth: int | None) -> QueueFull:
    if queue_depth is None:
        return QueueFull(
            "the broker has reached its memory limit; try later, add workers or raise Redis' "
            "maxmemory"
        )
    return QueueFull(
        f"queue {job.queue} holds {queue_depth} jobs, its limit is {job.max_queue_depth}; "
        "try later, add workers or raise BATCHMILL_MAX_QUEUE_DEPTH"
    )


def closed(batch_id: str, state: str) -> BatchClosed:
    """Return the error for a line that a batch does not take."""
    if not state:
        return BatchClosed(
            f"no batch {batch_id!r}: never created on this broker, or its time to live has run out"
        )
    code = f"batch_{state}" if state in ("cancelled", "expired") else "batch_closed"
    code = "batch_cancelled" if state == "cancelling" else code
    return BatchClosed(f"batch {batch_id} is {state} and takes no more lines", code=code)


def unknown_batch(batch_id: str) -> UnknownBatch:
    """Return the error for a batch that is not there."""
    return UnknownBatch(
        f"no batch {batch_id!r}: never created on this broker, or its time to live has run out"
    )


def unknown(job_id: str) -> UnknownJob:
    """Return the error for a job that is not there."""
    return UnknownJob(
        f"no job {job_id!r}: never submitted to this broker, or its time to live has run out"
    )


def result_of(
    job_id: str,
    state: JobState,
    result_json: bytes | None,
    error_json: bytes | None,
    token_ids: Sequence[int],
) -> JobResult:
    """Return the result of a job that has ended.

    Raises:
        JobFailed, JobCancelled, JobExpired: it ended without a completion.
    """
    result = None
    if result_json is not None:
        result = JobResult.model_validate_json(result_json)
        result = result.model_copy(update={"token_ids": list(token_ids)})
    if state is JobState.COMPLETED and result is not None:
        return result
    error = JobError(code=state.value, message=f"the job {state.value}")
    if error_json is not None:
        error = JobError.model_validate_json(error_json)
    raise _ERRORS.get(state, JobFailed)(
        f"job {job_id} {state.value}: {error.message} ({error.code})",
        job_id=job_id,
        code=error.code,
        retryable=error.retryable,
        result=result,
    )


@contextmanager
def broker_errors(url: str) -> Iterator[None]:
    """Turn the client library's errors into ours; passwords stay out of the message.

    Raises:
        BrokerUnavailable: no answer from the broker, or it takes no writes.
    """
    try:
        yield
    except (
        redis_errors.ConnectionError,
        redis_errors.TimeoutError,
        redis_errors.ReadOnlyError,
    ) as error:
        raise BrokerUnavailable(f"broker at {redact(url)}: {error}") from error
    except redis_errors.ResponseError as error:
        if not str(error).startswith(_TAKES_NO_WRITES):
            raise
        raise BrokerUnavailable(f"broker at {redact(url)} takes no writes: {error}") from error
