"""From a checked `GenerationJob` to the `NewJob` that is stored: defaults, seed, digest, limits."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import datetime
from functools import cache

from batchmill.engine.contract.explain import most_tokens
from batchmill.engine.contract.kinds import Kind
from batchmill.producer.errors import JobRejected
from batchmill.producer.job import limits
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.prefix import prefix_digest
from batchmill.producer.job.retry import RetryPolicy
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NO_LIMITS, NewJob, QueueLimits
from batchmill.producer.protocol.media import DECODES
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.webhook.target import ForbiddenTarget, read_target

from .media import check_media, new_media
from .output_memory import output_bytes

#: Random seeds stay exact in every JSON reader (2**53).
_SEED_BITS = 53
#: Of English text in common vocabularies; other languages have fewer.
_BYTES_PER_TOKEN = 4
#: Of a picture or a sound: models make 64 to several thousand tokens of one.
_TOKENS_PER_MEDIUM = 512
_ENDS = {state.value for state in JobState if state.is_terminal}


def prepare(job: GenerationJob, settings: ProducerSettings, *, job_id: str | None = None) -> NewJob:
    """Return the job to store: with defaults, a seed and a digest.

    Args:
        job: the job.
        settings: for the default model, limits and times to live.
        job_id: a given id (of a plain Celery task), or None for a new one.

    Raises:
        JobRejected: the operator does not allow the webhook's scheme, port or address, or the
            job's retry policy; or the given id is invalid.
    """
    job_id = keys.new_job_id() if job_id is None else job_id
    if not keys.is_job_id(job_id):
        raise JobRejected(
            f"id is {job_id[:140]!r}; a job id has 1 to 128 letters, digits, _ and -", param="id"
        )
    check_webhook(job.webhook, settings)
    check_retry(job.retry, settings)
    check_media(job, settings)
    model = job.model or settings.served_name
    job = job.model_copy(update={"model": model})
    digest = fingerprint(job) if job.idempotency_key else ""
    if job.seed is None and job.kind is Kind.GENERATE and job.beam_search is None:
        job = job.model_copy(update={"seed": secrets.randbits(_SEED_BITS)})
    return NewJob(
        job_id=job_id,
        model=model,
        queue=keys.queue_name(model, job.priority),
        document=job.model_dump_json(exclude_none=True, exclude={"traceparent"}),
        result_ttl_ms=settings.result_ttl_s * 1000,
        webhook=job.webhook,
        webhook_events=_events(job),
        webhook_secret=job.webhook_secret or "",
        idempotency_key=job.idempotency_key,
        fingerprint=digest,
        deadline_at_ms=None if job.deadline is None else _unix_ms(job.deadline),
        ttl_ms=None if job.ttl_s is None else max(1, int(job.ttl_s * 1000)),
        tenant=job.tenant or keys.DEFAULT_TENANT,
        cost=estimated_tokens(job),
        reserved_bytes=output_bytes(job, _estimated_prompt_tokens(job)),
        not_before_ms=None if job.not_before is None else _unix_ms(job.not_before),
        delay_ms=None if job.delay_s is None else max(1, int(job.delay_s * 1000)),
        limits=queue_limits(settings),
        tags=tuple(job.tags),
        max_tokens=most_output_tokens(job),
        version=keys.record_version(
            job.kind,
            has_adapter=job.lora is not None,
            has_media=bool(job.media),
            is_steered=job.steering is not None,
        ),
        lora=job.lora,
        steering=None if job.steering is None else job.steering.name,
        media=tuple(part.media for part in job.media),
        needs=tuple(sorted({DECODES[part.type] for part in job.media})),
        new_media=new_media(job, settings),
        traceparent=job.traceparent,
        prefix=prefix_digest(job),
    )


def queue_limits(settings: ProducerSettings) -> QueueLimits:
    """Return the limits on waiting jobs and on memory."""
    return _limits(
        settings.max_queue_depth,
        settings.max_queued_jobs,
        settings.max_queued_bytes,
        settings.max_queued_tokens,
        settings.max_memory_percent,
        settings.max_outbox_events,
        settings.max_endpoint_events,
    )


def estimated_tokens(job: GenerationJob) -> int:
    """Return the tokens that a job may need: its prompt, estimated from bytes, and all its output.

    Tenants are charged this until the real number is known. At most `MAX_COST_TOKENS`: no model
    has a longer context, whatever a job allows.
    """
    num_prompt_tokens, num_output_tokens = _estimated_prompt_tokens(job), most_output_tokens(job)
    num_tokens = (
        num_prompt_tokens + _estimated_tokens(job.negative_prompt or []) + num_output_tokens
    )
    num_tokens += judging_tokens(job, num_prompt_tokens) + explanation_tokens(job)
    return min(num_tokens, limits.MAX_COST_TOKENS)


def judging_tokens(job: GenerationJob, num_prompt_tokens: int) -> int:
    """Return about how many tokens it takes to select a sample by a decision; 0 without one."""
    if job.select is None:
        return 0
    return job.select.num_judging_tokens(num_prompt_tokens, job.max_tokens, job.n)


def explanation_tokens(job: GenerationJob) -> int:
    """Return the tokens that a job's explanation takes at most, besides its output; 0 without one.

    Shared ones count: how many there are is known only afterwards.
    """
    return most_tokens(
        job.explain,
        _estimated_prompt_tokens(job),
        most_output_tokens(job),
        compares_meaning=job.explain_similarity is not None,
    )


def most_output_tokens(job: GenerationJob) -> int:
    """Return the most tokens that a job may generate: those of all its samples, or of all beams."""
    section = job.section
    if section is not None:
        return section.num_output_tokens
    num_outputs = job.n if job.beam_search is None else job.beam_search.beam_width
    return job.max_tokens * num_outputs


def _estimated_prompt_tokens(job: GenerationJob) -> int:
    section = job.section
    if section is not None:
        num_prompt_tokens = section.num_input_bytes // _BYTES_PER_TOKEN + 1
        num_prompt_tokens += len(section.media) * _TOKENS_PER_MEDIUM
    elif job.prompt is not None:
        num_prompt_tokens = _estimated_tokens(job.prompt)
    else:
        num_prompt_tokens = job.num_chat_bytes // _BYTES_PER_TOKEN + 1
        num_prompt_tokens += len(job.media) * _TOKENS_PER_MEDIUM
    return num_prompt_tokens


def _estimated_tokens(prompt: str | list[int]) -> int:
    if isinstance(prompt, list):
        return len(prompt)
    return len(prompt.encode()) // _BYTES_PER_TOKEN + 1


@cache
def _limits(depth: int | None, *queued: int | None) -> QueueLimits:
    limits = QueueLimits(depth, *queued)
    return NO_LIMITS if limits == NO_LIMITS else limits


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def check_webhook(webhook: str | None, settings: ProducerSettings) -> None:
    """Reject a URL that no deliverer would send to. Its host name is not resolved.

    Raises:
        JobRejected: the operator does not allow its scheme, port or address.
    """
    if webhook is None:
        return
    try:
        read_target(webhook, settings.target_policy)
    except ForbiddenTarget as error:
        raise JobRejected(f"webhook: {error}", param="webhook") from None


def check_retry(policy: RetryPolicy | None, settings: ProducerSettings) -> None:
    """Reject a retry policy that asks for more than the operator allows.

    Raises:
        JobRejected: it does; the message names the value, the limit and its setting.
    """
    if policy is None:
        return
    attempts_limit, wait_limit_s = settings.retry_attempts_limit, settings.retry_backoff_limit_s
    for name, value, limit in (
        ("max_attempts", policy.max_attempts, attempts_limit),
        ("backoff_s", policy.backoff_s, wait_limit_s),
        ("max_backoff_s", policy.max_backoff_s, wait_limit_s),
    ):
        if value is not None and value > limit:
            variable = "ATTEMPTS_LIMIT" if name == "max_attempts" else "BACKOFF_LIMIT_S"
            raise JobRejected(
                f"retry.{name} is {value:g}, the operator's limit is {limit:g}; ask for less, or "
                f"raise BATCHMILL_RETRY_{variable}",
                param=f"retry.{name}",
            )


def _events(job: GenerationJob) -> str:
    """Return the events as they are stored; empty, the default, if they are the terminal ones."""
    chosen = set(job.webhook_events_filter)
    return "" if chosen == _ENDS else ",".join(sorted(chosen))


def fingerprint(job: GenerationJob) -> str:
    """Return a digest of everything the caller asked for, before a seed is chosen."""
    content = job.model_dump(mode="json", exclude={"idempotency_key", "traceparent"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
