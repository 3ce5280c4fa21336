"""How a job's end reads: the result and error in its record, and what Celery is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from batchmill.producer.protocol.replies import JobState, ReleaseCause, ReleaseStatus
from batchmill.producer.results import (
    CalledFunction,
    Completion,
    JobError,
    JobResult,
    Metrics,
    PromptTokensDetails,
    ToolCall,
    Usage,
)
from batchmill.worker.engine_host.messages import (
    Finished,
    FinishedCall,
    FinishedSample,
    Logprobs,
    Refused,
)

from .active_jobs import ActiveJob
from .delivery import NOT_OURS, Outcome

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
#: Errors of the engine that the same job may not meet again: on another worker, or at another time.
#: Not among them: `numerical_error`, because the same tokens make the same numbers.
_RETRYABLE = frozenset({"engine_error", "out_of_memory"})


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job's end as it is to be written."""

    state: JobState
    #: JSON of the job result; None without one.
    result: str | None
    #: JSON of the job error; None without one.
    error: str | None
    #: Tokens of prompt and output, which its tenant is charged with; None where nobody counted.
    num_tokens: int | None
    #: What Celery is told.
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
    result = JobResult(
        id=job.claim.job_id,
        model=model,
        status=state,
        finish_reason=finished.finish_reason,  # type: ignore[arg-type]
        stop_reason=finished.stop_reason,
        text=finished.text,
        tool_calls=_tool_calls(finished.tool_calls),
        logprobs=_logprobs(finished.logprobs),
        entropies=_listed(finished.entropies),
        prompt_logprobs=_logprobs(finished.prompt_logprobs),
        samples=[_sample(index, each) for index, each in enumerate(finished.samples)],
        usage=_usage(finished),
        metrics=_metrics(job, finished),
        attempt=job.claim.attempts,
        worker=worker,
        error=error,
        metadata=dict(job.metadata),
        tenant=job.tenant,
        tags=list(job.tags),
    )
    return _end(state, result, error, finished.num_output_tokens, result.usage.total_tokens)


def _engine_error(finished: Finished) -> JobError:
    code = finished.error_code or "engine_error"
    return JobError(
        code=code,
        message=finished.error or "the engine gave it up",
        retryable=code in _RETRYABLE,
    )


def refused_end(refused: Refused) -> JobEnd:
    """Return the end of a job that the engine does not take."""
    return failed_end(refused.code, refused.message)


def failed_end(code: str, message: str) -> JobEnd:
    """Return the end of a job that failed without any output."""
    return _end(JobState.FAILED, None, JobError(code=code, message=message), 0)


def stopped_end(job: ActiveJob) -> JobEnd:
    """Return the end of a job that was stopped before it came on board."""
    state = job.stopping or JobState.FAILED
    return _end(state, None, _STOP_ERRORS[state], len(job.token_ids))


def released_outcome(status: ReleaseStatus, cause: ReleaseCause) -> Outcome:
    """Return what Celery is told of a job that was given back."""
    if status is ReleaseStatus.REQUEUED:
        why = "the worker shuts down" if cause is ReleaseCause.DRAIN else "the engine died"
        return Outcome(JobState.QUEUED, error=("released", f"{why}; another attempt goes on"))
    if status is ReleaseStatus.DEAD:
        message = "the engine died again and again while it ran this job alone"
        return Outcome(JobState.FAILED, error=("attempts_exhausted", message))
    if status is ReleaseStatus.CANCELLED:
        return Outcome(JobState.CANCELLED)
    if status is ReleaseStatus.EXPIRED:
        return Outcome(JobState.EXPIRED)
    return NOT_OURS


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


def _sample(index: int, sample: FinishedSample) -> Completion:
    return Completion(
        index=index,
        text=sample.text,
        token_ids=list(sample.token_ids),
        finish_reason=sample.finish_reason,  # type: ignore[arg-type]
        stop_reason=sample.stop_reason,
        logprobs=_logprobs(sample.logprobs),
        entropies=_listed(sample.entropies),
        tool_calls=_tool_calls(sample.tool_calls),
        error=sample.error,
    )


def _logprobs(logprobs: Logprobs | None) -> list[dict[int, float] | None] | None:
    if logprobs is None:
        return None
    return [None if each is None else dict(each) for each in logprobs]


def _tool_calls(calls: Sequence[FinishedCall]) -> list[ToolCall]:
    return [
        ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in calls
    ]


def _listed(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _usage(finished: Finished) -> Usage:
    num_output_tokens = finished.num_output_tokens
    return Usage(
        prompt_tokens=finished.num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=finished.num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=finished.num_cached_tokens),
    )


def _metrics(job: ActiveJob, finished: Finished) -> Metrics:
    claim, now = job.claim, time.monotonic()
    first = job.first_token_at
    waited_s = (claim.claimed_at_ms - claim.enqueued_at_ms) / 1000
    return Metrics(
        queue_time_s=(claim.started_at_ms - claim.enqueued_at_ms) / 1000,
        engine_queue_time_s=finished.queued_s,
        ttft_s=None if first is None else first - job.claimed_at,
        generate_time_s=None if first is None else now - first,
        inter_token_latency_s=finished.inter_token_s,
        total_time_s=waited_s + now - job.claimed_at,
        resumed_tokens=len(claim.token_ids),
        preemptions=finished.num_preemptions,
    )
