"""A job's end: the state and error that go into its record, and the outcome for Celery."""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchmill.producer.protocol.replies import JobState, ReleaseCause, ReleaseStatus
from batchmill.producer.results import JobError, JobResult
from batchmill.worker.engine_host.messages import Finished, Refused

from .active_job import ActiveJob
from .job_result import build_result
from .outcome import NOT_OURS, Outcome

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
#: Engine errors that the same job may not meet on another worker or at another time. They do not
#: include `numerical_error`, because the same tokens make the same numbers.
_RETRYABLE = frozenset({"engine_error", "out_of_memory"})


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job, ready to be written."""

    state: JobState
    #: JSON of the job result; None without one.
    result: str | None
    #: JSON of the job error; None without one.
    error: str | None
    #: Prompt and output tokens that the job's tenant is charged for; None if they are unknown.
    num_tokens: int | None
    #: The report to Celery.
    outcome: Outcome


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
    return _end(state, result, error, finished.num_output_tokens, result.usage.total_tokens)


def refused_end(refused: Refused) -> JobEnd:
    """Return the end of a job that the engine refused."""
    return failed_end(refused.code, refused.message)


def failed_end(code: str, message: str) -> JobEnd:
    """Return the end of a job that failed without any output."""
    return _end(JobState.FAILED, None, JobError(code=code, message=message), 0)


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
        num_tokens=end.num_tokens,
    )


def released_outcome(status: ReleaseStatus, cause: ReleaseCause) -> Outcome:
    """Return the report to Celery for a job that was given back."""
    if status is ReleaseStatus.REQUEUED:
        why = "the worker is shutting down" if cause is ReleaseCause.DRAIN else "the engine died"
        return Outcome(
            JobState.QUEUED, error=("released", f"{why}; another attempt continues the job")
        )
    if status is ReleaseStatus.DEAD:
        message = "the engine died repeatedly while it ran this job alone"
        return Outcome(JobState.FAILED, error=("attempts_exhausted", message))
    if status is ReleaseStatus.CANCELLED:
        return Outcome(JobState.CANCELLED)
    if status is ReleaseStatus.EXPIRED:
        return Outcome(JobState.EXPIRED)
    return NOT_OURS


def _engine_error(finished: Finished) -> JobError:
    code = finished.error_code or "engine_error"
    return JobError(
        code=code,
        message=finished.error or "the engine failed the request without a message",
        retryable=code in _RETRYABLE,
    )


def _end(
    state: JobState,
    result: JobResult | None,
    error: JobError | None,
    num_output_tokens: int,
    num_tokens: int | None = None,
) -> JobEnd:
    text = None if result is None else result.model_dump_json()
    outcome = Outcome(
        state=state,
        result=text,
        error=None if error is None else (error.code, error.message),
        num_output_tokens=num_output_tokens,
    )
    return JobEnd(
        state=state,
        result=text,
        error=None if error is None else error.model_dump_json(),
        num_tokens=num_tokens,
        outcome=outcome,
    )
