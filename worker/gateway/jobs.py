"""Jobs of the gateway: checked against the caller's key, submitted, waited for and read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from batchmill.producer import GenerationJob, JobResult
from batchmill.producer.client.async_checks import off_loop
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.reply_errors import accepted_id, unknown_job_error
from batchmill.producer.store.submission import estimated_tokens, explanation_tokens, prepare
from batchmill.producer.tracing.sending import send_span

from .adapters import resolve_model
from .api_errors import invalid
from .backend import Backend
from .caller import check_class, check_model, take_rate, unknown_model
from .media_takers import check_media_taken
from .request_spans import traceparent_of_request

Value = TypeVar("Value")
#: Tokens that the explanation of a job's output takes at most, before any of it is computed.
EXPLAIN_TOKENS_HEADER: Final = "x-batchmill-explain-tokens"


async def checked_job(
    request: Request, backend: Backend, key: ApiKey, fields: Mapping[str, Any]
) -> GenerationJob:
    """Return the job of a request that a caller may send.

    Raises:
        ApiError: the key does not allow its tenant, model or class.
        JobRejected: a field is invalid.
    """
    fields = dict(fields)
    given = request.headers.get("idempotency-key")
    if given is not None and fields.setdefault("idempotency_key", given) != given:
        raise invalid(
            "the header Idempotency-Key and the field idempotency_key differ: give one",
            "idempotency_key",
        )
    job = await check_fields(backend, key, fields)
    model = job.model or backend.settings.served_name
    await check_served(backend, model)
    if job.media:
        check_media_taken(await backend.media_takers(model), model, {x.type for x in job.media})
    return job


async def check_fields(backend: Backend, key: ApiKey, fields: Mapping[str, Any]) -> GenerationJob:
    """Return the job of fields, if its key allows them. Whether its model is served is not asked.

    Raises:
        ApiError, JobRejected: as `checked_job`.
    """
    adapters = await backend.adapters_for(key.tenant)
    if adapters:
        fields = resolve_model(fields, adapters, await backend.served_models())
    fields = allowed_fields(key, fields, default_class="normal")
    async with backend.turns.of_tenant(key.tenant):
        job = await off_loop(parse_job, fields)
    check_allowed(key, job, backend.settings.served_name)
    return job


def allowed_fields(key: ApiKey, fields: Mapping[str, Any], *, default_class: str) -> dict[str, Any]:
    """Return fields with the tenant of a key, and a class if they have none.

    Raises:
        ApiError: they name another tenant.
    """
    fields = dict(fields)
    if fields.get("tenant") not in (None, key.tenant):
        raise invalid(f"tenant is fixed by the API key, to {key.tenant}: leave it out", "tenant")
    fields["tenant"] = key.tenant
    if fields.get("priority") is None:
        fields["priority"] = "low" if key.highest_class == "low" else default_class
    return fields


def check_allowed(key: ApiKey, job: GenerationJob, default_model: str) -> None:
    """Refuse a class or a model that a key may not use.

    Raises:
        ApiError: it may not.
    """
    check_class(key, job.priority, "priority")
    check_model(key, job.model or default_model)


async def check_served(backend: Backend, model: str) -> None:
    """Refuse a model that no worker serves.

    Raises:
        ApiError: workers run, and none of them serves it.
    """
    if not await backend.is_known_model(model):
        raise unknown_model(model, sorted(await backend.served_models()))


async def submit_job(
    request: Request,
    backend: Backend,
    key: ApiKey,
    job: GenerationJob,
    details: str,
) -> str:
    """Take the job from the key's limits, store it, and return its id.

    Args:
        request: of the caller; its id becomes the job's.
        backend: the queue.
        key: the caller's.
        job: checked by `checked_job`.
        details: JSON of what the gateway needs besides the job to answer in its API's terms.

    Raises:
        ApiError: a limit of the key is reached.
        JobRejected: the queue refuses it.
    """
    await take_rate(request, backend, key, estimated_tokens(job))
    if job.explain:
        request.state.headers |= {EXPLAIN_TOKENS_HEADER: str(explanation_tokens(job))}
    prepared = prepare(job, backend.settings)
    new = replace(
        prepared,
        api_key=key.id,
        gateway=details,
        traceparent=prepared.traceparent or traceparent_of_request(request),
    )
    store, new = await backend.shards.placed(new)
    with send_span(new, backend.settings) as traced:
        reply = await store.run(job_calls.submit(traced))
        request.state.request_id = request.state.job_id = accepted_id(traced, reply)
    return str(request.state.request_id)


def job_details(api: str) -> str:
    """Return what the record of a job says about the API that it came by, as JSON."""
    return json.dumps({"api": api})


async def wait_for_result(
    request: Request, backend: Backend, job_id: str, *, cancels: bool
) -> JobResult:
    """Return the result of a job, as long as its caller waits for it.

    Args:
        request: of the caller.
        backend: the queue.
        job_id: the job.
        cancels: whether the job is cancelled if the caller goes away.

    Raises:
        ClientDisconnect: the caller went away.
        ApiError: it takes longer than a request may wait; the job continues.
        JobUnfinished: it ended without a completion.
    """
    limit_s = backend.settings.gateway_wait_timeout_s
    try:
        return await while_connected(request, backend.client.result(job_id, timeout_s=limit_s))
    except ClientDisconnect:
        if cancels:
            await backend.client.cancel(job_id)
        raise


async def while_connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Return the value of a coroutine, which is cancelled if the client goes away.

    Raises:
        ClientDisconnect: the client is gone.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(BaseException):
                await task


async def check_owner(backend: Backend, key: ApiKey, job_id: str, api: str) -> dict[str, Any]:
    """Return what the gateway noted about a job of this caller and API.

    Raises:
        UnknownJob: there is none, or it belongs to another tenant or came by another way.
    """
    if not keys.is_job_id(job_id):
        raise unknown_job_error(job_id[:140])
    store = await backend.shards.of_job(job_id)
    tenant, details = await store.read(_ownership(job_id))
    if tenant != key.tenant or details.get("api") != api:
        raise unknown_job_error(job_id)
    return details


def _ownership(job_id: str) -> Read[tuple[str | None, dict[str, Any]]]:
    def parse(replies: list[Any]) -> tuple[str | None, dict[str, Any]]:
        tenant, details = replies[0]
        return (None if tenant is None else tenant.decode()), json.loads(details or "{}")

    return Read(lambda pipeline: pipeline.hmget(keys.job(job_id), "tenant", "gateway"), parse)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
