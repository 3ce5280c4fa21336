"""`/v1/responses`: a job that its caller waits for, follows as a stream, or fetches later."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.api_keys import ApiKey, Scope

from .api_errors import invalid
from .backend import Backend
from .caller import identify, require_scope
from .jobs import checked_job, submit_job, wait_for_result
from .request_body import read_request
from .response_events import response_stream
from .response_input import earlier_messages
from .response_record import load_response, response_details, response_id
from .response_request import ResponseOptions, read_response
from .sse import event_stream


async def create_response(request: Request) -> Response:
    """Serve `POST /v1/responses`."""
    backend, key = await _caller(request, "submit")
    fields, options = await read_request(request, backend.settings, read_response)
    if options.previous_response_id is not None:
        fields["messages"] = await _with_earlier(backend, key, fields["messages"], options)
    job = await checked_job(request, backend, key, fields)
    details = response_details(
        background=options.background,
        store=options.store,
        instructions=options.has_instructions,
        previous_response_id=options.previous_response_id,
    )
    job_id = await submit_job(request, backend, key, job, details)
    name = response_id(job_id)
    if options.stream:
        response = await load_response(backend, key, name)
        events = response_stream(
            backend,
            key,
            response,
            cancels=options.cancel_on_disconnect and not options.background,
            forgets=not options.store,
        )
        return event_stream(events, backend.settings.gateway_heartbeat_s)
    if not options.background:
        await wait_for_result(request, backend, job_id, cancels=options.cancel_on_disconnect)
    response = await load_response(backend, key, name)
    if not options.store:
        backend.run_later(backend.client.forget(job_id))
    return JSONResponse(response.to_object())


async def get_response(request: Request) -> Response:
    """Serve `GET /v1/responses/{response_id}`, whole or as the rest of a stream."""
    backend, key = await _caller(request, "read")
    response = await load_response(backend, key, request.path_params["response_id"])
    query = request.query_params
    if query.get("stream", "false") not in ("true", "false"):
        raise invalid("stream must be true or false", "stream")
    if query.get("stream") != "true":
        return JSONResponse(response.to_object())
    after = query.get("starting_after", "-1")
    if not after.removeprefix("-").isdecimal() or not int(after[:12]) >= -1:
        raise invalid("starting_after must be the number of an event", "starting_after")
    events = response_stream(backend, key, response, after=int(after[:12]))
    return event_stream(events, backend.settings.gateway_heartbeat_s)


async def cancel_response(request: Request) -> Response:
    """Serve `POST /v1/responses/{response_id}/cancel`."""
    backend, key = await _caller(request, "submit")
    response = await load_response(backend, key, request.path_params["response_id"])
    await backend.client.cancel(response.job_id)
    response = await load_response(backend, key, response_id(response.job_id))
    return JSONResponse(response.to_object())


async def delete_response(request: Request) -> Response:
    """Serve `DELETE /v1/responses/{response_id}`: everything that is stored about it is erased."""
    backend, key = await _caller(request, "submit")
    response = await load_response(backend, key, request.path_params["response_id"])
    await backend.client.forget(response.job_id)
    name = response_id(response.job_id)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


async def _with_earlier(
    backend: Backend, key: ApiKey, messages: list[Any], options: ResponseOptions
) -> list[Any]:
    """Return the messages after those of an earlier response; only its instructions are left out.

    Raises:
        ApiError: it does not exist, has not completed, or is not stored.
    """
    param = "previous_response_id"
    earlier = await load_response(backend, key, options.previous_response_id or "")
    if earlier.state is not JobState.COMPLETED or earlier.result is None:
        raise invalid(f"{param} names a response that is {earlier.status}", param)
    start = 1 if options.has_instructions else 0
    skips = 1 if earlier.details["instructions"] else 0
    before = earlier_messages(earlier.document, earlier.result.message, skips=skips)
    return [*messages[:start], *before, *messages[start:]]


async def _caller(request: Request, scope: Scope) -> tuple[Backend, ApiKey]:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, scope)
    return backend, key
