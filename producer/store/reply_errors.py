"""Errors made of replies and records; results of ended jobs. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from batchmill.producer.errors import (
    BatchClosed,
    IdempotencyConflict,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRejected,
    JobUnfinished,
    QueueFull,
    QueuePaused,
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
from batchmill.producer.result_parts import JobError
from batchmill.producer.results import JobResult

_ERRORS: dict[JobState, type[JobUnfinished]] = {
    JobState.FAILED: JobFailed,
    JobState.CANCELLED: JobCancelled,
    JobState.EXPIRED: JobExpired,
}

#: Limits that are settings; the others belong to a tenant.
_STORE_LIMITS = frozenset(field.name for field in fields(QueueLimits))


#: What a limit counts, by the last word of its name; otherwise waiting jobs.
_UNITS = {
    "bytes": "bytes of waiting documents and of outputs to come",
    "tokens": "tokens of waiting jobs",
}


def accepted_id(job: NewJob, reply: SubmitReply) -> str:
    """Return the id of the job that stands for a submission.

    Raises:
        IdempotencyConflict: the key stands for other content.
        QueueFull: a limit on waiting jobs is reached, or Redis' memory limit.
        QueuePaused: the queue or the tenant is paused and refuses jobs.
        BatchClosed: the job's batch takes no more lines.
        JobRejected: its deadline would pass before it may run, its adapter does not exist, or a
            key that it needs is in use.
    """
    if reply.status is SubmitStatus.UNUSABLE:
        raise unusable_record_error()
    if reply.status is SubmitStatus.CLOSED and job.batch is not None:
        raise batch_closed_error(job.batch.batch_id, reply.batch_state)
    if reply.status is SubmitStatus.TOO_LATE:
        raise JobRejected(
            "the deadline passes before the job may run: give it a later deadline (deadline, "
            "ttl_s) or an earlier start (not_before, delay_s)",
            param="not_before" if job.delay_ms is None else "delay_s",
        )
    if reply.status is SubmitStatus.NO_ADAPTER:
        raise adapter_error(
            reply.adapter_param,
            job.steering if reply.adapter_param == "steering" else job.lora,
            job.model,
            reply.adapter_model,
        )
    if reply.status is SubmitStatus.NO_MEDIA:
        raise media_error(job.media[reply.media_place], job.tenant)
    if reply.pause is not None:
        raise QueuePaused(f"{reply.pause.describe()}; it refuses jobs until it is resumed")
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


def media_error(some_id: str | None, tenant: str) -> JobRejected:
    """Return the error of a job that names a picture or a sound that is not stored."""
    return JobRejected(
        f"messages: the tenant {tenant!r} has no medium {some_id}: store it with put_media, or "
        "send it again; it is kept for BATCHMILL_MEDIA_TTL_S after that, and after each job",
        code="media_missing",
        param="messages",
    )


def adapter_error(param: str, name: str | None, model: str, adapter_model: str = "") -> JobRejected:
    """Return the error of a job whose adapter or vector is unknown, or is one of another model.

    Args:
        param: field that names it: `lora` or `steering`.
        name: its name.
        model: of the job.
        adapter_model: of the adapter; empty if it is unknown, or not for the job's tenant.
    """
    what, an = ("vector", "a") if param == "steering" else ("adapter", "an")
    if adapter_model:
        return JobRejected(
            f"{param} is {name!r}, {an} {what} of the model {adapter_model[:200]!r}, and the job's "
            f"model is {model!r}: name that model, or another {what}",
            param=param,
        )
    return JobRejected(
        f"{param} is {name!r}, and there is no such {what}, or not for this tenant: "
        f"`batchmill {param} list` shows all",
        param=param,
        code="adapter_not_found",
    )


def unusable_record_error() -> JobRejected:
    """Return the error of a job whose keys cannot be used."""
    return JobRejected(
        "a key of this job in Redis holds data that batchmill did not write; delete the key, or "
        "use another id or idempotency key",
        code="unusable_record",
    )


def _queue_full_error(
    queue: str, tenant: str, reached: ReachedLimit | None
) -> QueueFull | JobRejected:
    if reached is None:
        return QueueFull(
            "the broker has reached its memory limit; try later, add workers or raise Redis' "
            "maxmemory"
        )
    if reached.name == "max_memory_percent":
        return _memory_error(reached)
    if reached.name in ("max_outbox_events", "max_endpoint_events"):
        return _outbox_full_error(tenant, reached)
    unit = _UNITS.get(reached.name.rpartition("_")[2], "waiting jobs")
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


def _memory_error(reached: ReachedLimit) -> QueueFull | JobRejected:
    if reached.needed_bytes > reached.limit:
        return JobRejected(
            f"the job may need {reached.needed_bytes} bytes of Redis' memory with its longest "
            f"output, the limit for everything is {reached.limit}; ask for fewer tokens "
            "(max_tokens), samples (n) or log probabilities, or raise Redis' maxmemory or "
            "BATCHMILL_MAX_MEMORY_PERCENT",
            code="job_too_large",
            param="max_tokens",
        )
    return QueueFull(
        f"the broker would hold {reached.value} bytes, outputs of unfinished jobs included, and "
        f"its limit is {reached.limit}; try later, add workers, shorten outputs (max_tokens, n, "
        "logprobs) or the time that results are kept (BATCHMILL_RESULT_TTL_S), or raise Redis' "
        "maxmemory or BATCHMILL_MAX_MEMORY_PERCENT"
    )


def _outbox_full_error(tenant: str, reached: ReachedLimit) -> QueueFull:
    of_endpoint = reached.name == "max_endpoint_events"
    place = f"the outbox of this webhook (tenant {tenant})" if of_endpoint else "the outbox"
    remedy = "fix its receiver" if of_endpoint else "start `batchmill deliver`"
    return QueueFull(
        f"{place} holds {reached.value} webhook events that wait for delivery, and its limit is "
        f"{reached.limit}; {remedy} (`batchmill webhooks endpoints` shows what waits and why), "
        f"submit without a webhook, or raise BATCHMILL_{reached.name.upper()}"
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
