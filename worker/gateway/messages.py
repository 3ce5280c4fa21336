"""Anthropic's `/v1/messages`: a job that its caller waits for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .backend import Backend
from .caller import identify, require_scope
from .jobs import checked_job, job_details, submit_job, wait_for_result
from .message_object import message_object, message_stream
from .message_request import read_message_request
from .openai_api import MESSAGES
from .request_body import read_request
from .sse import event_stream


async def create_message(request: Request) -> Response:
    """Serve `POST /v1/messages`."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    fields, options = await read_request(request, backend.settings, read_message_request)
    job = await checked_job(request, backend, key, fields)
    job_id = await submit_job(request, backend, key, job, job_details(MESSAGES))
    cancels = options.cancel_on_disconnect
    if options.stream:
        model = job.model or backend.settings.served_name
        events = message_stream(backend, job_id, model, cancels=cancels)
        return event_stream(events, backend.settings.gateway_heartbeat_s)
    result = await wait_for_result(request, backend, job_id, cancels=cancels)
    return JSONResponse(message_object(result))
