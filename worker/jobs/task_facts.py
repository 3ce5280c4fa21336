"""What monitors such as Flower may show of a job: names and numbers, nothing of its content."""

from __future__ import annotations

import time
from collections.abc import Mapping

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.results import JobResult

from .active_job import ActiveJob

Facts = Mapping[str, object]


def facts_of_job(document: GenerationJob) -> Facts:
    """Return what is known about a job when it is claimed."""
    facts: dict[str, object] = {
        "model": document.model,
        "class": document.priority,
        "tenant": document.tenant or keys.DEFAULT_TENANT,
    }
    if document.tags:
        facts["tags"] = ",".join(document.tags)
    if document.max_tokens is not None:
        facts["max_tokens"] = document.max_tokens
    if document.n not in (None, 1):
        facts["n"] = document.n
    return facts


def facts_of_progress(job: ActiveJob) -> Facts:
    """Return how far a running job is."""
    num_tokens = len(job.token_ids)
    facts: dict[str, object] = {"tokens": num_tokens}
    if job.first_token_at is not None:
        num_new = num_tokens - len(job.claim.token_ids)
        facts |= _speed(num_new, time.monotonic() - job.first_token_at)
    return facts


def facts_of_result(result: JobResult) -> Facts:
    """Return what is known about a job that has ended with a result."""
    usage, metrics = result.usage, result.metrics
    facts: dict[str, object] = {"tokens": usage.completion_tokens}
    if metrics.generate_time_s is not None:
        facts |= _speed(usage.completion_tokens - metrics.resumed_tokens, metrics.generate_time_s)
    if metrics.ttft_s is not None:
        facts["ttft_s"] = round(metrics.ttft_s, 3)
    facts["prompt_tokens"] = usage.prompt_tokens
    if result.watermarked:
        facts["watermarked"] = True
    return facts


def result_line(facts: Facts, num_tokens: int) -> str:
    """Return the facts of a completed job in words, for the place of its result."""
    parts = [f"{facts.get('tokens', num_tokens)} tokens"]
    if "tok/s" in facts:
        parts.append(f"{facts['tok/s']} tok/s")
    if "ttft_s" in facts:
        parts.append(f"first token after {facts['ttft_s']} s")
    return f"<{', '.join(parts)}>"


def _speed(num_new: int, seconds: float) -> dict[str, object]:
    """Return the tokens per second after the first token; nothing if they are too few to tell."""
    if num_new < 2 or seconds <= 0:
        return {}
    return {"tok/s": round((num_new - 1) / seconds, 1)}
