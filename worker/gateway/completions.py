"""`/v1/chat/completions` and `/v1/completions`: a job that its caller waits for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer import JobResult
from batchmill.producer.bulk.result_lines import response_body
from batchmill.producer.job.line import LineKind
from batchmill.producer.store.api_keys import ApiKey

from .api_errors import invalid
from .backend import Backend
from .caller import identify, require_scope
from .completion_request import CompletionOptions, read_completion
from .completion_stream import ChunkWriter, completion_chunks
from .jobs import checked_job, job_details, submit_job, wait_for_result
from .request_body import read_request
from .sse import event_stream

#: Prompts in one request of `/v1/completions`, each of which is a job.
MAX_PROMPTS = 128


async def create_chat_completion(request: Request) -> Response:
    """Serve `POST /v1/chat/completions`."""
    return await _create(request, LineKind.CHAT)


async def create_completion(request: Request) -> Response:
    """Serve `POST /v1/completions`."""
    return await _create(request, LineKind.TEXT)


async def _create(request: Request, kind: LineKind) -> Response:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    fields, options = await read_request(request, backend.settings, partial(read_completion, kind))
    prompts = several_prompts(fields.get("prompt")) if kind is LineKind.TEXT else None
    if prompts is not None:
        return await _create_several(request, backend, key, fields, options, prompts)
    job = await checked_job(request, backend, key, fields)
    job_id = await submit_job(request, backend, key, job, job_details(kind.value))
    cancels = options.cancel_on_disconnect
    if options.stream:
        model = job.model or backend.settings.served_name
        writer = ChunkWriter(kind, job_id, model, options)
        chunks = completion_chunks(backend, job_id, writer, cancels=cancels)
        return event_stream(chunks, backend.settings.gateway_heartbeat_s)
    result = await wait_for_result(request, backend, job_id, cancels=cancels)
    return JSONResponse(response_body(kind, result))


def several_prompts(prompt: Any) -> list[Any] | None:
    """Return the prompts of a list of texts or of lists of tokens; None if there is one prompt."""
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return None
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"prompt has {len(prompt)} prompts, the limit is {MAX_PROMPTS}", "prompt")
    return prompt


async def _create_several(
    request: Request,
    backend: Backend,
    key: ApiKey,
    fields: dict[str, Any],
    options: CompletionOptions,
    prompts: list[Any],
) -> Response:
    """Run a job per prompt; the choices come in the order of the prompts."""
    if options.stream and len(prompts) > 1:
        raise invalid("a stream has one prompt; send a request for each", "stream")
    if len(prompts) > 1 and "idempotency-key" in request.headers:
        raise invalid("an idempotency key is for one prompt; send a request for each", "prompt")
    for name in ("explain", "select", "beam_search"):
        if len(prompts) > 1 and fields.get(name):
            raise invalid(f"{name} is for one prompt; send a request for each", name)
    jobs = [
        await checked_job(request, backend, key, {**fields, "prompt": prompt}) for prompt in prompts
    ]
    details = job_details(LineKind.TEXT.value)
    ids = [await submit_job(request, backend, key, job, details) for job in jobs]
    request.state.request_id = ids[0]
    cancels = options.cancel_on_disconnect
    if options.stream:
        model = jobs[0].model or backend.settings.served_name
        writer = ChunkWriter(LineKind.TEXT, ids[0], model, options)
        chunks = completion_chunks(backend, ids[0], writer, cancels=cancels)
        return event_stream(chunks, backend.settings.gateway_heartbeat_s)
    results = [await wait_for_result(request, backend, job_id, cancels=cancels) for job_id in ids]
    return JSONResponse(await asyncio.to_thread(_joined, results))


def _joined(results: list[JobResult]) -> dict[str, Any]:
    """Return one body with the choices and the usage of several results."""
    bodies = [response_body(LineKind.TEXT, result) for result in results]
    choices = [choice for body in bodies for choice in body["choices"]]
    for index, choice in enumerate(choices):
        choice["index"] = index
    usage = results[0].usage.model_dump()
    for result in results[1:]:
        more = result.usage
        usage["prompt_tokens"] += more.prompt_tokens
        usage["completion_tokens"] += more.completion_tokens
        usage["total_tokens"] += more.total_tokens
        usage["prompt_tokens_details"]["cached_tokens"] += more.prompt_tokens_details.cached_tokens
    return bodies[0] | {"choices": choices, "usage": usage}
