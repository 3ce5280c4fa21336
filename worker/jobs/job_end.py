"""A job's end: the state and error that go into its record, and the outcome for Celery."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from batchmill.producer.job.retry import RESTARTED_CODES, RETRYABLE_CODES
from batchmill.producer.protocol.replies import JobState, ReleaseCause, ReleaseStatus
from batchmill.producer.protocol.used_tokens import UsedTokens
from batchmill.producer.result_parts import JobError
from batchmill.producer.results import JobResult
from batchmill.worker.engine_host.messages import Finished, Refused

from .active_job import ActiveJob
from .job_result import build_result
from .outcome import NOT_OURS, Outcome
from .task_facts import facts_of_result

_STOP_ERRORS = {
    JobState.CANCELLED: JobError(code="cancelled", message="the job was cancelled"),
    JobState.EXPIRED: JobError(
        code="deadline_exceeded", message="the deadline passed before the job was done"
    ),
    JobState.FAILED: JobError(
        code="time_limit_exceeded",
        message="Celery's time limit for the task passed before the job was done; raise it",
    ),
}
_RELEASE_REASONS = {
    ReleaseCause.DRAIN: "the worker is shutting down",
    ReleaseCause.NOT_STARTED: "the engine died before it had the job",
    ReleaseCause.MOVED: "another worker has room for the job",
    ReleaseCause.SLICED: "its time slice is over, and other jobs wait",
    ReleaseCause.ENGINE_DEATH: "the engine died",
    ReleaseCause.ENGINE_STALL: "the engine stood still and was replaced",
}


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job, ready to be written."""

    state: JobState
    #: JSON of the job result; None without one.
    result: str | None
    #: JSON of the job error; None without one.
    error: str | None
    #: Tokens that the job's tenant is charged for; None if they are unknown.
    used: UsedTokens | None
    #: The report to Celery.
    outcome: Outcome
    #: The attempt failed, and another one follows after this time; None ends the job.
    retry_in_ms: int | None = None
    #: That attempt does not continue from the tokens so far.
    starts_over: bool = False
    #: Reference to the object that has the result; empty if the record gets it.
    result_object: bytes = b""


def finished_end(job: ActiveJob, finished: Finished, *, worker: str, model: str) -> JobEnd:
    """Return the end of a job that the engine finished or stopped.

    An output that was complete before a stop reached the engine counts as completed.
    """
    error: JobError | None = None
    state = JobState.COMPLETED
    if finished.finish_reason == "error":
        state = JobState.FAILED
        error = _engine_error(finished)
    elif finished.finish_reason == "abort":
        # The engine watches the deadline too, and may be the first to see it pass.
        is_late = finished.error_code == _STOP_ERRORS[JobState.EXPIRED].code
        state = job.stopping or (JobState.EXPIRED if is_late else JobState.FAILED)
        error = _STOP_ERRORS[state]
    result = build_result(job, finished, state, error, worker=worker, model=model)
    used = UsedTokens(
        finished.num_prompt_tokens,
        finished.num_output_tokens,
        finished.num_cached_tokens,
        finished.num_thought_tokens,
    )
    return _end(state, result, error, finished.num_output_tokens, used)


def refused_end(refused: Refused) -> JobEnd:
    """Return the end of a job that the engine refused."""
    return failed_end(refused.code, refused.message)


def failed_end(code: str, message: str) -> JobEnd:
    """Return the end of a job that failed without any output."""
    return _end(JobState.FAILED, None, _error(code, message), 0)


def with_retry(job: ActiveJob, end: JobEnd, rng: random.Random) -> JobEnd:
    """Return the end of an attempt; with a retry if it failed and the job's rules say so."""
    if end.state is not JobState.FAILED or end.outcome.error is None or job.retry_rules is None:
        return end
    if job.stopping is not None:  # cancelled, or out of time
        return end
    code, _ = end.outcome.error
    wait_s = job.retry_rules.wait_s(code, job.claim.retries + 1, rng)
    if wait_s is None:
        return end
    wait_ms = round(wait_s * 1000)
    return replace(end, retry_in_ms=wait_ms, starts_over=code in RESTARTED_CODES)


def retrying_outcome(end: JobEnd) -> Outcome:
    """Return the report to Celery for an attempt that is followed by another one."""
    code, message = end.outcome.error or ("", "")
    wait_s = (end.retry_in_ms or 0) / 1000
    return Outcome(JobState.QUEUED, error=(code, f"{message}; tried again in {wait_s:.1f} s"))


def unstored_end(end: JobEnd, code: str, message: str) -> JobEnd:
    """Return the end of a job whose result could not be stored: a completed job fails.

    A job that ended otherwise keeps its state and error, as in `bounded_end`.
    """
    if end.state is JobState.COMPLETED:
        return failed_end(code, message)
    return replace(end, result=None, outcome=replace(end.outcome, result=None))


def with_object(end: JobEnd, reference: bytes) -> JobEnd:
    """Return an end whose result is in the object store."""
    return replace(end, result_object=reference)


def stopped_end(job: ActiveJob) -> JobEnd:
    """Return the end of a job that was stopped before it was submitted to the engine."""
    state = job.stopping or JobState.FAILED
    return _end(state, None, _STOP_ERRORS[state], len(job.token_ids))


def bounded_end(end: JobEnd, max_result_bytes: int) -> JobEnd:
    """Return the end, without its result if that has too many bytes: a completed job then fails.

    A job that ended otherwise keeps its state and error.
    """
    num_bytes = len((end.result or "").encode())
    if num_bytes <= max_result_bytes:
        return end
    if end.state is not JobState.COMPLETED:
        return replace(end, result=None, outcome=replace(end.outcome, result=None))
    return _end_without_result(
        end,
        "result_too_large",
        f"the result has {num_bytes} bytes, the limit of this worker is {max_result_bytes}; ask "
        "for fewer samples, tokens or logprobs, or raise BATCHMILL_MAX_RESULT_BYTES",
    )


def result_refused_end(end: JobEnd, num_tries: int, reason: str) -> JobEnd:
    """Return the end of a job whose end Redis refused every time, while it took other calls."""
    return _end_without_result(
        end,
        "result_refused",
        f"Redis refused this end, with a result of {len((end.result or '').encode())} bytes, "
        f"{num_tries} times ({reason}); set BATCHMILL_MAX_RESULT_BYTES below what Redis and any "
        "proxy before it take (proto-max-bulk-len), or ask for a shorter output",
    )


def _end_without_result(end: JobEnd, code: str, message: str) -> JobEnd:
    error = JobError(code=code, message=message)
    return replace(
        _end(JobState.FAILED, None, error, end.outcome.num_output_tokens),
        used=end.used,
    )


def released_outcome(status: ReleaseStatus, cause: ReleaseCause) -> Outcome:
    """Return the report to Celery for a job that was given back."""
    if status is ReleaseStatus.REQUEUED:
        why = f"{_RELEASE_REASONS[cause]}; another attempt continues the job"
        return Outcome(JobState.QUEUED, error=(cause.value, why))
    if status is ReleaseStatus.DEAD:
        message = "the engine died or stood still repeatedly while it ran this job alone"
        return Outcome(JobState.FAILED, error=("attempts_exhausted", message))
    if status is ReleaseStatus.CANCELLED:
        return _stopped_outcome(JobState.CANCELLED)
    if status is ReleaseStatus.EXPIRED:
        return _stopped_outcome(JobState.EXPIRED)
    return NOT_OURS


def _stopped_outcome(state: JobState) -> Outcome:
    error = _STOP_ERRORS[state]
    return Outcome(state, error=(error.code, error.message))


def _engine_error(finished: Finished) -> JobError:
    return _error(
        finished.error_code or "engine_error",
        finished.error or "the engine failed the request without a message",
    )


def _error(code: str, message: str) -> JobError:
    return JobError(code=code, message=message, retryable=code in RETRYABLE_CODES)


def _end(
    state: JobState,
    result: JobResult | None,
    error: JobError | None,
    num_output_tokens: int,
    used: UsedTokens | None = None,
) -> JobEnd:
    text = None if result is None else result.model_dump_json()
    outcome = Outcome(
        state=state,
        result=text,
        error=None if error is None else (error.code, error.message),
        num_output_tokens=num_output_tokens,
        facts={} if result is None else facts_of_result(result),
    )
    return JobEnd(
        state=state,
        result=text,
        error=None if error is None else error.model_dump_json(),
        used=used,
        outcome=outcome,
    )
