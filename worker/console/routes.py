"""The routes of the console, and how it becomes a part of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route

from batchmill.worker.gateway.app import Part
from batchmill.worker.gateway.settings import GatewaySettings

from . import batches, dead_letters, job, jobs, overview, queues, webhooks, workers
from .recorder import record_load
from .serving import ROOT, page_endpoint
from .signing_in import get_static, get_unknown, show_sign_in, take_sign_in, take_sign_out
from .site import Site

#: Path, method and function of every page and form that needs a viewer.
VIEWS = (
    ("/", "GET", overview.show_overview),
    ("/workers", "GET", workers.show_workers),
    ("/queues", "GET", queues.show_queues),
    ("/queues", "POST", queues.change_pause),
    ("/jobs", "GET", jobs.list_jobs),
    ("/jobs/{job_id}", "GET", job.show_job),
    ("/jobs/{job_id}", "POST", job.change_job),
    ("/jobs/{job_id}/explanation", "GET", job.show_explanation),
    ("/batches", "GET", batches.list_batches),
    ("/batches/{batch_id}", "GET", batches.show_batch),
    ("/batches/{batch_id}", "POST", batches.cancel_batch),
    ("/batches/{batch_id}/results", "GET", batches.download_results),
    ("/dead-letters", "GET", dead_letters.list_letters),
    ("/dead-letters/{letter_id}", "POST", dead_letters.change_letter),
    ("/webhooks", "GET", webhooks.show_webhooks),
    ("/webhooks", "POST", webhooks.change_endpoint),
    ("/webhooks/events/{event_id}", "GET", webhooks.show_event),
    ("/webhooks/events/{event_id}", "POST", webhooks.redeliver),
)


def console_parts(settings: GatewaySettings) -> Sequence[Part]:
    """Return the console as a part of the gateway; nothing if it is off."""
    if not settings.gateway_console:
        return ()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        site = Site(settings)
        app.state.console = site
        recording = asyncio.ensure_future(record_load(site))
        yield
        recording.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await recording
        site.close()

    return [Part(console_routes(), lifespan)]


def console_routes() -> list[BaseRoute]:
    """Return all routes."""
    open_routes = [
        Route("/sign-in", show_sign_in, methods=["GET"]),
        Route("/sign-in", take_sign_in, methods=["POST"]),
        Route("/sign-out", take_sign_out, methods=["POST"]),
        Route("/static/{name}", get_static, methods=["GET"]),
    ]
    views = [Route(path, page_endpoint(view), methods=[method]) for path, method, view in VIEWS]
    home = Route(ROOT, page_endpoint(overview.show_overview), methods=["GET"])
    unknown = Route("/{path:path}", get_unknown, methods=["GET", "POST"])
    return [home, Mount(ROOT, routes=[*open_routes, *views, unknown])]
