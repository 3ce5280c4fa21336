"""Builds the job result, as callers read it, from the engine's `Finished` message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from batchmill.engine.contract.selection import SELECT
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_parts import (
    CalledFunction,
    CompletionTokensDetails,
    JobError,
    LogprobDetails,
    Metrics,
    PromptTokensDetails,
    ToolCall,
    Usage,
)
from batchmill.producer.results import Completion, JobResult
from batchmill.worker.engine_host import messages
from batchmill.worker.engine_host.messages import (
    Finished,
    FinishedCall,
    FinishedSample,
    Logprobs,
)

from .active_job import ActiveJob
from .selection import select_sample

_T = TypeVar("_T")


def build_result(
    job: ActiveJob,
    finished: Finished,
    state: JobState,
    error: JobError | None,
    *,
    worker: str,
    model: str,
) -> JobResult:
    """Return the result of a job that ends in a state, with an error if it has one."""
    rule, reports = job.selection, job.reports_logprobs
    # A selection may need log probabilities that the caller did not ask for.
    of_output, of_prompt = reports
    sections = dict(finished.sections)
    answers = sections.pop(SELECT, None)
    return JobResult(
        id=job.claim.job_id,
        model=model,
        status=state,
        finish_reason=finished.finish_reason,  # type: ignore[arg-type]
        stop_reason=finished.stop_reason,
        text=finished.text,
        tool_calls=_tool_calls(finished.tool_calls),
        reasoning_content=finished.reasoning or None,
        logprobs=_logprobs(finished.logprobs) if of_output else None,
        entropies=_list_or_none(finished.entropies),
        prompt_logprobs=_logprobs(finished.prompt_logprobs) if of_prompt else None,
        logprob_details=_logprob_details(finished.logprob_details) if any(reports) else None,
        samples=[
            _completion(index, each, with_logprobs=of_output)
            for index, each in enumerate(finished.samples)
        ],
        selection=None if rule is None else select_sample(rule, finished.samples, answers),
        watermarked=finished.is_watermarked,
        usage=_usage(finished),
        metrics=_metrics(job, finished),
        attempt=job.claim.attempts,
        worker=worker,
        error=error,
        metadata=dict(job.metadata),
        tenant=job.tenant,
        tags=list(job.tags),
        **sections,
    )


def _completion(index: int, sample: FinishedSample, *, with_logprobs: bool) -> Completion:
    return Completion(
        index=index,
        text=sample.text,
        token_ids=list(sample.token_ids),
        finish_reason=sample.finish_reason,  # type: ignore[arg-type]
        stop_reason=sample.stop_reason,
        logprobs=_logprobs(sample.logprobs) if with_logprobs else None,
        entropies=_list_or_none(sample.entropies),
        tool_calls=_tool_calls(sample.tool_calls),
        reasoning_content=sample.reasoning or None,
        error=sample.error,
    )


def _logprobs(logprobs: Logprobs | None) -> list[dict[int, float] | None] | None:
    if logprobs is None:
        return None
    return [None if each is None else dict(each) for each in logprobs]


def _logprob_details(details: messages.LogprobDetails | None) -> LogprobDetails | None:
    if details is None:
        return None
    return LogprobDetails(
        num_top=details.num_top,
        token_bytes=dict(details.token_bytes),
        echoed_token_ids=_list_or_none(details.echoed_token_ids),
        asked_token_ids=list(details.asked_token_ids),
    )


def _tool_calls(calls: Sequence[FinishedCall]) -> list[ToolCall]:
    return [
        ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in calls
    ]


def _list_or_none(values: Sequence[_T] | None) -> list[_T] | None:
    return None if values is None else list(values)


def _usage(finished: Finished) -> Usage:
    num_output_tokens = finished.num_output_tokens
    num_reasoning_tokens = finished.num_thought_tokens
    details = CompletionTokensDetails(reasoning_tokens=num_reasoning_tokens)
    return Usage(
        prompt_tokens=finished.num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=finished.num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=finished.num_cached_tokens),
        completion_tokens_details=details if num_reasoning_tokens else None,
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
