"""Errors made of replies, records and redis-py's errors; results of ended jobs. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from redis import exceptions as redis_errors

from batchmill.producer.broker_url import redact
from batchmill.producer.errors import (
    BatchClosed,
    BrokerUnavailable,
    IdempotencyConflict,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRejected,
    JobUnfinished,
    QueueFull,
    UnknownBatch,
    UnknownJob,
    WrongState,
)
from batchmill.producer.protocol.calls.new_job import NewJob, QueueLimits
from batchmill.producer.protocol.replies import (
    ForgetReply,
    ForgetStatus,
    JobState,
    ReachedLimit,
    RetryReply,
    RetryStatus,
    SubmitReply,
    SubmitStatus,
)
from batchmill.producer.results import JobError, JobResult

_ERRORS: dict[JobState, type[JobUnfinished]] = {
    JobState.FAILED: JobFailed,
    JobState.CANCELLED: JobCancelled,
    JobState.EXPIRED: JobExpired,
}

#: Limits that are settings; the others belong to a tenant.
_STORE_LIMITS = frozenset(field.name for field in fields(QueueLimits))

#: Errors of a server that refuses all writes for now (its disk is full, its replicas are away);
#: redis-py has no classes for them.
_REFUSES_WRITES = ("MISCONF", "NOREPLICAS")


def accepted_id(job: NewJob, reply: SubmitReply) -> str:
    """Return the id of the job that stands for a submission.

    Raises:
        IdempotencyConflict: the key stands for other content.
        QueueFull: a limit on waiting jobs is reached, or Redis' memory limit.
        BatchClosed: the job's batch takes no more lines.
        JobRejected: its deadline would pass before it may run.
    """
    if reply.status is SubmitStatus.CLOSED and job.batch is not None:
        raise batch_closed_error(job.batch.batch_id, reply.batch_state)
    if reply.status is SubmitStatus.TOO_LATE:
        raise JobRejected(
            "the deadline passes before the job may run: give it a later deadline (deadline, "
            "ttl_s) or an earlier start (not_before, delay_s)",
            param="not_before" if job.delay_ms is None else "delay_s",
        )
    if reply.job_id is None:
        raise _queue_full_error(job.queue, job.tenant, reply.reached)
    if reply.status is SubmitStatus.CONFLICT:
        if job.idempotency_key is None and job.batch is not None:
            raise IdempotencyConflict(
                f"line {job.batch.index + 1} of batch {job.batch.batch_id} is job {reply.job_id}, "
                "which has other content; use a new key for another input",
                job_id=reply.job_id,
            )
        raise IdempotencyConflict(
            f"idempotency_key {job.idempotency_key!r} stands for job {reply.job_id}, which has "
            "other content; use a new key for a new job",
            job_id=reply.job_id,
        )
    return reply.job_id


def _queue_full_error(queue: str, tenant: str, reached: ReachedLimit | None) -> QueueFull:
    if reached is None:
        return QueueFull(
            "the broker has reached its memory limit; try later, add workers or raise Redis' "
            "maxmemory"
        )
    unit = {"bytes": "bytes of waiting jobs", "tokens": "tokens of waiting jobs"}.get(
        reached.name.rpartition("_")[2], "waiting jobs"
    )
    if reached.name in _STORE_LIMITS:
        place = "the broker" if reached.name != "max_queue_depth" else f"queue {queue}"
        setting = f"BATCHMILL_{reached.name.upper()}"
    else:
        place = f"tenant {tenant}"
        flag = reached.name.replace("_", "-")
        setting = f"the limit (`batchmill tenants set {tenant} --{flag}`)"
    return QueueFull(
        f"{place} holds {reached.value} {unit}, its limit is {reached.limit}; "
        f"try later, add workers or raise {setting}"
    )


def batch_closed_error(batch_id: str, state: str) -> BatchClosed:
    """Return the error for a line that a batch does not take."""
    if not state:
        return BatchClosed(
            f"batch {batch_id!r} does not exist: never created on this broker, or its time to live "
            "has run out"
        )
    code = f"batch_{state}" if state in ("cancelled", "expired") else "batch_closed"
    code = "batch_cancelled" if state == "cancelling" else code
    return BatchClosed(f"batch {batch_id} is {state} and takes no more lines", code=code)


def unknown_batch_error(batch_id: str) -> UnknownBatch:
    """Return the error for a batch that does not exist."""
    return UnknownBatch(
        f"batch {batch_id!r} does not exist: never created on this broker, or its time to live has "
        "run out"
    )


def unknown_job_error(job_id: str) -> UnknownJob:
    """Return the error for a job that does not exist."""
    return UnknownJob(
        f"job {job_id!r} does not exist: never submitted to this broker, forgotten, or its time to "
        "live has run out"
    )


def check_retried(job_id: str, reply: RetryReply) -> int:
    """Return the number of the run that a retry has begun.

    Raises:
        UnknownJob: the job does not exist.
        WrongState: it completed, or has not ended.
        QueueFull: a limit on waiting jobs is reached.
    """
    match reply.status:
        case RetryStatus.UNKNOWN:
            raise unknown_job_error(job_id)
        case RetryStatus.COMPLETED:
            raise WrongState(
                f"job {job_id} completed, so there is nothing to run again; submit a new one",
                job_id=job_id,
                state=JobState.COMPLETED,
            )
        case RetryStatus.ACTIVE:
            assert reply.state is not None
            raise WrongState(
                f"job {job_id} is {reply.state.value}; only one that failed, was cancelled or "
                "expired can be retried",
                job_id=job_id,
                state=reply.state,
            )
        case RetryStatus.FULL:
            raise _queue_full_error(reply.queue, reply.tenant, reply.reached)
    assert reply.run is not None
    return reply.run


def check_forgotten(job_id: str, reply: ForgetReply) -> None:
    """Raise an error if a job was not forgotten.

    Raises:
        UnknownJob: the job does not exist.
        WrongState: it has not ended.
    """
    if reply.status is ForgetStatus.UNKNOWN:
        raise unknown_job_error(job_id)
    if reply.status is ForgetStatus.ACTIVE:
        assert reply.state is not None
        raise WrongState(
            f"job {job_id} is {reply.state.value}; cancel it and wait for its end, then forget it",
            job_id=job_id,
            state=reply.state,
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
    """Turn redis-py's errors into ours; passwords stay out of the message.

    Raises:
        BrokerUnavailable: the broker does not respond, or refuses writes.
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
        if not str(error).startswith(_REFUSES_WRITES):
            raise
        raise BrokerUnavailable(f"broker at {redact(url)} refuses writes: {error}") from error
