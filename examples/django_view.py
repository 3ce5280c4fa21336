"""batchmill in Django: views that submit a job, show it, and receive its webhook.

Put these into your `views.py` and `urls.py`; each server process uses one client.
"""

from __future__ import annotations

import os
from functools import cache

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from batchmill.producer import Client, JobRejected, SignatureError, UnknownJob, verify_webhook


@cache
def client() -> Client:
    """Return the client of this process, created by its first request: the server has forked."""
    return Client()


@require_POST
def submit(request: HttpRequest) -> JsonResponse:
    """Submit a prompt from a form."""
    try:
        job = client().submit(prompt=request.POST.get("prompt", ""), max_tokens=48)
    except JobRejected as error:
        return JsonResponse({"error": str(error), "param": error.param}, status=422)
    return JsonResponse({"id": job.id}, status=202)


@require_GET
def show(request: HttpRequest, job_id: str) -> JsonResponse:
    """Return the state of a job."""
    try:
        status = client().status(job_id)
    except UnknownJob:
        return JsonResponse({"error": "unknown job"}, status=404)
    return JsonResponse({"state": status.state, "output_tokens": status.output_tokens})


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
    path("hook", hook),
]
