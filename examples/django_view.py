"""batchmill in Django: views that submit a job, show it, stream it, and receive its webhook.

Put these into your `views.py` and `urls.py`, with `job_errors.py` and `job_events.py` beside them.
Each server process uses one client. `events` is an asynchronous view: it needs an ASGI server
(`uvicorn mysite.asgi:application`); the others run on any. Whoever knows an id can read its text:
check here that the job belongs to your user.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from functools import cache

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from job_errors import error_response
from job_events import HEADERS, MEDIA_TYPE, job_events, position_of

from batchmill.producer import (
    AsyncClient,
    BatchmillError,
    Client,
    JobState,
    SignatureError,
    verify_webhook,
)

MAX_PROMPT_CHARACTERS = 8000


@cache
def client() -> Client:
    """Return the client of this process, created by its first request: the server has forked."""
    return Client()


@cache
def async_client() -> AsyncClient:
    """Return the asyncio client of this process, which an ASGI server runs in one event loop."""
    return AsyncClient()


def show_error(request: HttpRequest, error: BatchmillError) -> JsonResponse:
    """Turn an error of batchmill into a response."""
    status, body, headers = error_response(error, request.headers.get("Idempotency-Key"))
    return JsonResponse(body, status=status, headers=headers)


def safe(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Turn the errors of batchmill in a view into responses."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, **values: str) -> HttpResponse:
        try:
            return view(request, **values)
        except BatchmillError as error:
            return show_error(request, error)

    return wrapped


def safe_async(
    view: Callable[..., Awaitable[HttpResponseBase]],
) -> Callable[..., Awaitable[HttpResponseBase]]:
    """Do the same for an asynchronous view."""

    @functools.wraps(view)
    async def wrapped(request: HttpRequest, **values: str) -> HttpResponseBase:
        try:
            return await view(request, **values)
        except BatchmillError as error:
            return show_error(request, error)

    return wrapped


@require_POST
@safe
def submit(request: HttpRequest) -> JsonResponse:
    """Submit a prompt from a form. The model, the tenant and limits are this service's."""
    prompt = request.POST.get("prompt", "")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        message = f"the prompt must have at most {MAX_PROMPT_CHARACTERS} characters"
        return JsonResponse({"error": "invalid_request", "message": message}, status=422)
    key = request.headers.get("Idempotency-Key")
    job = client().submit(prompt, max_tokens=48, idempotency_key=key)
    return JsonResponse({"id": job.id}, status=202)


@require_GET
@safe
def show(request: HttpRequest, job_id: str) -> JsonResponse:
    """Return the state of a job, and its text once it is completed."""
    status = client().status(job_id)
    text = None
    if status.state is JobState.COMPLETED:
        text = client().result(job_id, timeout_s=0).text
    return JsonResponse(
        {"state": status.state, "output_tokens": status.output_tokens, "text": text}
    )


@require_GET
@safe_async
async def events(request: HttpRequest, job_id: str) -> StreamingHttpResponse:
    """Send the text of a job while it is generated."""
    position = position_of(request.headers.get("Last-Event-ID"))
    await async_client().status(job_id)  # an unknown job is a 404, which is too late in the stream
    return StreamingHttpResponse(
        job_events(async_client(), job_id, position), content_type=MEDIA_TYPE, headers=HEADERS
    )


@csrf_exempt  # the signature proves who sent it
@require_POST
def hook(request: HttpRequest) -> HttpResponse:
    """Receive a webhook; the signature covers the raw body."""
    try:
        event = verify_webhook(
            request.body, request.headers, os.environ["BATCHMILL_WEBHOOK_SECRET"]
        )
    except SignatureError:
        return HttpResponse(status=401)
    print(event.type, event.data["id"], flush=True)
    return HttpResponse(status=204)


urlpatterns = [
    path("jobs", submit),
    path("jobs/<str:job_id>", show),
    path("jobs/<str:job_id>/events", events),
    path("hook", hook),
]
