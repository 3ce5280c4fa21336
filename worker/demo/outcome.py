"""The outcome of a demo: its jobs, its webhooks, what failed, and the figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from batchmill.producer import (
    BatchmillError,
    Client,
    Job,
    JobResult,
    JobStatus,
    SignatureError,
    WebhookEvent,
    verify_webhook,
)
from batchmill.worker.webhooks.local_receiver import ReceivedRequest

from .load_samples import LoadSamples
from .prompts import DemoPrompt


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """One job of the demo: its result, or why there is none."""

    job_id: str
    prompt: DemoPrompt
    status: JobStatus
    result: JobResult | None
    failure: str | None

    @classmethod
    def of_job(cls, client: Client, job: Job, prompt: DemoPrompt) -> JobOutcome:
        """Read the result of a job without waiting."""
        status = job.status()
        try:
            return cls(job.id, prompt, status, job.result(timeout_s=0), None)
        except BatchmillError as error:
            failure = str(error) if status.state.is_terminal else f"still {status.state.value}"
            return cls(job.id, prompt, status, None, failure)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of the closing table; one is None if there was nothing to measure."""

    num_jobs: int
    num_completed: int
    num_output_tokens: int
    tokens_per_s: float | None
    #: Requests per batch: mean of the samples with running requests.
    mean_batch_size: float | None
    ttft_p50_s: float | None
    #: Share of the KV blocks, 0 to 1.
    peak_kv_use: float | None


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """Jobs, webhooks, failures and figures of a demo."""

    jobs: Sequence[JobOutcome]
    #: One line per failure.
    failures: Sequence[str]
    figures: Figures
    #: A webhook as received, and the event that its verification returned.
    webhook: ReceivedRequest | None
    event: WebhookEvent | None
    num_webhooks_verified: int

    @property
    def passed(self) -> bool:
        """Whether every job completed and every webhook was verified."""
        return not self.failures


def judge_demo(
    jobs: Sequence[JobOutcome],
    requests: Sequence[ReceivedRequest],
    secret: str,
    samples: LoadSamples,
) -> DemoOutcome:
    """Check that every job completed and that its webhook arrived with a valid signature.

    Args:
        jobs: every job of the demo.
        requests: all requests of the receiver.
        secret: the secret that the webhooks must be signed with.
        samples: of the worker's load.
    """
    failures = [f"job {job.job_id}: {job.failure}" for job in jobs if job.failure is not None]
    verified: dict[str, tuple[ReceivedRequest, WebhookEvent]] = {}
    for request in requests:
        try:
            event = verify_webhook(request.body, request.headers, secret)
        except SignatureError as error:
            failures.append(f"webhook {request.headers.get('webhook-id')}: {error}")
        else:
            verified[str(event.data.get("id"))] = (request, event)
    for job in jobs:
        failures += _webhook_failures(job, verified)
    last = verified.get(jobs[-1].job_id) if jobs else None
    return DemoOutcome(
        jobs=jobs,
        failures=failures,
        figures=_figures(jobs, samples),
        webhook=None if last is None else last[0],
        event=None if last is None else last[1],
        num_webhooks_verified=len(verified),
    )


def _webhook_failures(
    job: JobOutcome, verified: dict[str, tuple[ReceivedRequest, WebhookEvent]]
) -> list[str]:
    if job.job_id not in verified:
        return [f"job {job.job_id}: its webhook did not arrive"] if job.failure is None else []
    reported = verified[job.job_id][1].data.get("status")
    if reported != job.status.state.value:
        return [
            f"job {job.job_id}: its webhook reports {reported}, but its record says "
            f"{job.status.state.value}"
        ]
    return []


def _figures(jobs: Sequence[JobOutcome], samples: LoadSamples) -> Figures:
    results = [job.result for job in jobs if job.result is not None]
    ttfts_s = [result.metrics.ttft_s for result in results if result.metrics.ttft_s is not None]
    num_tokens = sum(result.usage.completion_tokens for result in results)
    started = [job.status.started_at_ms for job in jobs if job.status.started_at_ms is not None]
    finished = [job.status.finished_at_ms for job in jobs if job.status.finished_at_ms is not None]
    span_s = (max(finished) - min(started)) / 1000 if started and finished else 0.0
    return Figures(
        num_jobs=len(jobs),
        num_completed=len(results),
        num_output_tokens=num_tokens,
        tokens_per_s=num_tokens / span_s if span_s > 0 else None,
        mean_batch_size=samples.mean_batch_size,
        ttft_p50_s=statistics.median(ttfts_s) if ttfts_s else None,
        peak_kv_use=samples.peak_kv_use,
    )
