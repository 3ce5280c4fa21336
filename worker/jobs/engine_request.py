"""Turns a claimed job's document into the request that the engine gets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from batchmill.engine.contract.steering import SteeringSpec
from batchmill.producer.job.chat import ChatFields
from batchmill.producer.job.controls import SamplingControls
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.worker.engine_host.messages import AddRequest

from .active_job import TimeLimit

#: Fields of a job document that the engine gets.
_ENGINE_FIELDS = set(SamplingControls.model_fields)
_CHAT_FIELDS = set(ChatFields.model_fields)
#: The engine's number for each priority class, as docs/protocol.md lists them.
_PRIORITIES = {name: number for number, name in enumerate(keys.PRIORITIES)}


def request_id(claim: Claim) -> str:
    """Return the engine's name for one attempt, which no other attempt has.

    The fence has the nonce of the claim: if Redis loses its last writes, the numbers of claims
    repeat, and the earlier attempt may still be in the engine.
    """
    return f"{claim.job_id}.{claim.fence}"


def engine_request(
    claim: Claim, document: GenerationJob, salt: str | None, draft_corpus: str | None = None
) -> AddRequest:
    """Return the engine request of a claimed job, resumed from the tokens in its record."""
    section, section_fields = document.plan
    if document.media and document.decision is not None:
        section_fields |= {"state": _with_placeholders(section_fields["state"])}
    return AddRequest(
        request_id=request_id(claim),
        prompt=document.prompt,
        chat=None if document.messages is None else chat_arguments(document),
        params=_params(document),
        resumed_token_ids=claim.token_ids,
        priority=_PRIORITIES[document.priority],
        deadline_s=_time_left_s(claim),
        cache_salt=salt,
        lora=claim.lora,
        steering=_steering(claim, document),
        section=section,
        section_fields=section_fields,
        plan_state=claim.plan_state,
        draft_corpus=draft_corpus,
    )


def reports_logprobs(document: GenerationJob) -> tuple[bool, bool]:
    """Return whether a job's result has log probabilities of the output, and of the prompt.

    The engine computes them for a selection by likelihood as well.
    """
    if not _selects_by_likelihood(document):
        return True, True
    of_output = document.logprobs is not None or document.logprob_token_ids is not None
    return of_output, document.prompt_logprobs is not None or (document.echo and of_output)


def _selects_by_likelihood(document: GenerationJob) -> bool:
    return document.select is not None and document.select.by == "likelihood"


def _steering(claim: Claim, document: GenerationJob) -> SteeringSpec | None:
    """Return what steers a job: its version is that of the record, the rest that of the job."""
    if claim.steering is None or document.steering is None:
        return None
    layers = document.steering.layers
    return SteeringSpec(
        claim.steering,
        float(document.steering.strength),
        None if layers is None else (layers[0], layers[1]),
    )


def _params(document: GenerationJob) -> dict[str, Any]:
    """Return the controls for the engine; a selection by likelihood needs log probabilities."""
    params = document.model_dump(include=_ENGINE_FIELDS)
    if _selects_by_likelihood(document) and document.logprobs is None:
        params["logprobs"] = 0
    return params


def cache_salt(document: GenerationJob, *, shared_across_tenants: bool) -> str | None:
    """Return the engine's cache salt for a job.

    Sharing a prefix cache leaks: a job's latency shows which prefixes the cache holds.

    Returns:
        None if neither the job nor its tenant is kept apart. Jobs without a tenant share.
    """
    tenant = document.tenant
    if tenant == keys.DEFAULT_TENANT or shared_across_tenants:
        tenant = None
    if tenant is None and document.cache_salt is None:
        return None
    # As JSON, so that a salt of one tenant can never equal that of another tenant.
    return json.dumps([tenant, document.cache_salt])


def chat_arguments(document: GenerationJob) -> dict[str, Any]:
    """Return the chat fields for the engine, without nulls, which a template might print."""
    fields = document.model_dump(include=_CHAT_FIELDS, exclude_none=True)
    if document.media:
        fields["messages"] = _with_placeholders(fields["messages"])
    return fields


def _with_placeholders(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as the engine gets them: with kinds of media only."""
    return [
        {**message, "content": [_placeholder(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]


def _placeholder(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part as the engine gets it: it sees no id and no URL."""
    return part if part["type"] == "text" else {"type": part["type"]}


def time_limit(claim: Claim, celery_limit_s: float | None) -> TimeLimit | None:
    """Return the earlier of the job's deadline and Celery's time limit for the task."""
    limits = []
    now = time.monotonic()
    left_s = _time_left_s(claim)
    if left_s is not None:
        limits.append(TimeLimit(now + left_s, JobState.EXPIRED))
    if celery_limit_s is not None:
        limits.append(TimeLimit(now + celery_limit_s, JobState.FAILED))
    return min(limits, key=lambda limit: limit.at, default=None)


def _time_left_s(claim: Claim) -> float | None:
    """Return the seconds from claim to deadline, both on Redis' clock: ours may be wrong."""
    if claim.deadline_at_ms is None:
        return None
    return (claim.deadline_at_ms - claim.claimed_at_ms) / 1000
