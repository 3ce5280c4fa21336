"""The routes of the gateway, and the application that serves them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from batchmill.producer.protocol.calls.call import Read
from batchmill.worker.metrics.gateway_series import GatewayMeter
from batchmill.worker.tracing.process import start_tracing

from .api_errors import ApiError
from .backend import Backend
from .batches import cancel_batch, create_batch, get_batch, list_batches
from .completions import create_chat_completion, create_completion
from .decisions import create_decision, create_systemone
from .files import create_file, delete_file, get_content, get_file, list_all_files
from .intake import run_intakes
from .key_levels import keep_keys_level
from .message_batches import (
    cancel_message_batch,
    create_message_batch,
    delete_message_batch,
    get_message_batch,
    get_message_results,
    list_message_batches,
)
from .messages import create_message
from .metered import Metered
from .middleware import Envelope, error_response
from .models import get_model, list_models
from .request_spans import RequestSpans
from .responses import cancel_response, create_response, delete_response, get_response
from .route import Route
from .settings import GatewaySettings
from .shard_stores import missing_shards
from .spec.document import openapi_document
from .usage import get_usage
from .vectors import create_embeddings, create_rerank, create_score
from .webhook_endpoints import (
    create_endpoint,
    delete_endpoint,
    get_endpoint,
    list_endpoints,
    list_event_types,
    rotate_secret,
    test_endpoint,
    update_endpoint,
)

#: Parts of OpenAI's and Anthropic's APIs that this version does not have, by the start of a path.
UNSUPPORTED = (
    *("/v1/images", "/v1/audio", "/v1/moderations", "/v1/fine_tuning"),
    *("/v1/assistants", "/v1/threads", "/v1/vector_stores", "/v1/realtime", "/v1/uploads"),
    *("/v1/evals", "/v1/containers", "/v1/conversations", "/v1/videos"),
    *("/v1/responses", "/v1/messages"),  # paths below the first that have no route
)


class Part(NamedTuple):
    """Another part of the server, beside the APIs."""

    routes: Sequence[BaseRoute]
    #: Entered when the server starts, with the application.
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]


def build_app(
    settings: GatewaySettings, meter: GatewayMeter | None = None, parts: Sequence[Part] = ()
) -> Starlette:
    """Return the application; it connects to the broker when the server starts it.

    Args:
        settings: of the gateway.
        meter: counts requests.
        parts: served beside the APIs.
    """
    metered = [] if meter is None else [Middleware(Metered, meter=meter)]

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.state.backend = Backend(settings)
        running = [
            asyncio.ensure_future(each)
            for each in (run_intakes(app.state.backend), keep_keys_level(settings))
        ]
        async with contextlib.AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(part.lifespan(app))
            yield
        for each in running:
            each.cancel()
        await asyncio.wait(running)
        await app.state.backend.close()

    return Starlette(
        routes=[*routes(), *(route for part in parts for route in part.routes)],
        middleware=[
            *metered,
            Middleware(RequestSpans, tracer=start_tracing(settings, "batchmill-gateway")),
            Middleware(Envelope, max_header_bytes=settings.gateway_max_header_bytes),
        ],
        exception_handlers={HTTPException: _unknown_url},
        lifespan=lifespan,
    )


def routes() -> list[Route]:
    """Return all routes."""
    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", get_model, methods=["GET"]),
        Route("/v1/usage", get_usage, methods=["GET"]),
        Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
        Route("/v1/completions", create_completion, methods=["POST"]),
        Route("/v1/embeddings", create_embeddings, methods=["POST"]),
        Route("/v1/score", create_score, methods=["POST"]),
        Route("/v1/rerank", create_rerank, methods=["POST"]),
        Route("/v1/decisions", create_decision, methods=["POST"]),
        Route("/v1/systemone", create_systemone, methods=["POST"]),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/{response_id}", get_response, methods=["GET"]),
        Route("/v1/responses/{response_id}", delete_response, methods=["DELETE"]),
        Route("/v1/responses/{response_id}/cancel", cancel_response, methods=["POST"]),
        Route("/v1/messages", create_message, methods=["POST"]),
        Route("/v1/messages/batches", create_message_batch, methods=["POST"]),
        Route("/v1/messages/batches", list_message_batches, methods=["GET"]),
        Route("/v1/messages/batches/{batch_id}", get_message_batch, methods=["GET"]),
        Route("/v1/messages/batches/{batch_id}", delete_message_batch, methods=["DELETE"]),
        Route("/v1/messages/batches/{batch_id}/cancel", cancel_message_batch, methods=["POST"]),
        Route("/v1/messages/batches/{batch_id}/results", get_message_results, methods=["GET"]),
        Route("/v1/files", create_file, methods=["POST"]),
        Route("/v1/files", list_all_files, methods=["GET"]),
        Route("/v1/files/{file_id}", get_file, methods=["GET"]),
        Route("/v1/files/{file_id}", delete_file, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", get_content, methods=["GET"]),
        Route("/v1/batches", create_batch, methods=["POST"]),
        Route("/v1/batches", list_batches, methods=["GET"]),
        Route("/v1/batches/{batch_id}", get_batch, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", cancel_batch, methods=["POST"]),
        Route("/v1/webhook_event_types", list_event_types, methods=["GET"]),
        Route("/v1/webhook_endpoints", create_endpoint, methods=["POST"]),
        Route("/v1/webhook_endpoints", list_endpoints, methods=["GET"]),
        Route("/v1/webhook_endpoints/{endpoint_id}", get_endpoint, methods=["GET"]),
        Route("/v1/webhook_endpoints/{endpoint_id}", update_endpoint, methods=["POST"]),
        Route("/v1/webhook_endpoints/{endpoint_id}", delete_endpoint, methods=["DELETE"]),
        Route("/v1/webhook_endpoints/{endpoint_id}/rotate_secret", rotate_secret, methods=["POST"]),
        Route("/v1/webhook_endpoints/{endpoint_id}/test", test_endpoint, methods=["POST"]),
    ]


async def healthz(request: Request) -> Response:
    """Serve `GET /healthz`: the process lives."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Serve `GET /readyz`: the broker replies, or at least one shard."""
    backend: Backend = request.app.state.backend
    ping = Read(lambda pipeline: pipeline.ping(), list)
    parts = await backend.shards.each(lambda store: store.read(ping))
    if not parts.by_shard:
        told = f"none of the shards {', '.join(parts.missing)} replies at the moment; try again"
        raise ApiError(503, told, code="broker_unavailable", headers={"retry-after": "1"})
    ready = {"status": "ok", "models": sorted(await backend.served_models())}
    return JSONResponse(ready | missing_shards(parts.missing))


async def openapi(request: Request) -> Response:
    """Serve `GET /openapi.json`: this document."""
    content = await asyncio.to_thread(_document)
    return Response(content, media_type="application/json")


@functools.cache
def _document() -> bytes:
    # Made once, and on a thread: it takes a good part of a second, and anyone may ask for it.
    return bytes(JSONResponse(openapi_document(routes())).body)


async def _unknown_url(request: Request, error: Exception) -> Response:
    """Return the error of a path or a method that has no route."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        refusal = ApiError(
            405,
            f"{path[:200]} does not take {request.method}",
            code="method_not_allowed",
            headers=error.headers,
        )
    elif any(path == start or path.startswith(f"{start}/") for start in UNSUPPORTED):
        refusal = ApiError(
            404,
            f"{path[:200]} is not supported by this version of batchmill",
            code="unsupported_endpoint",
        )
    else:
        refusal = ApiError(error.status_code, f"{path[:200]} does not exist", code="unknown_url")
    return error_response(request, refusal)
