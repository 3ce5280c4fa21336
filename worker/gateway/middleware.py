"""The outermost layer: an id for each request, headers, and errors in the envelope of their API."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from .api_errors import ApiError, api_error

_log = structlog.get_logger(__name__)
_INTERNAL = "the gateway failed; its log has the cause under this request's id"


class Envelope:
    """Turns every exception of a route into a response of the API that the request is for."""

    def __init__(self, app: Any, max_header_bytes: int) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        # A route that makes a job puts the job's id here.
        state["request_id"] = f"req_{secrets.token_hex(12)}"
        state["headers"] = {}
        has_started = False

        async def send_with_headers(message: Any) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name in ("x-request-id", "request-id"):
                    headers[name] = state["request_id"]
                headers["cache-control"] = headers.get("cache-control", "no-store")
                headers["x-content-type-options"] = "nosniff"
                for name, value in state["headers"].items():
                    headers[name] = value
            await send(message)

        try:
            self._check_headers(scope["headers"])
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except Exception as error:
            if has_started:
                raise  # uvicorn closes the connection, so that the client sees a cut
            response = error_response(Request(scope), _known(error, state["request_id"]))
            await response(scope, receive, send_with_headers)

    def _check_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        # uvicorn limits headers only as long as they are incomplete.
        if sum(len(name) + len(value) for name, value in headers) > self._max_header_bytes:
            raise ApiError(
                431,
                f"the headers of the request have more than {self._max_header_bytes} bytes, the "
                "limit; send less, or raise BATCHMILL_GATEWAY_MAX_HEADER_BYTES",
                code="headers_too_large",
            )


def error_response(request: Request, error: ApiError) -> JSONResponse:
    """Return the response of an error, in the envelope of the API that the request is for."""
    if is_anthropic(request):
        body = error.anthropic_body(request.state.request_id)
    else:
        body = error.openai_body()
    return JSONResponse(body, error.status, headers=error.headers)


def is_anthropic(request: Request) -> bool:
    """Return whether a request is for Anthropic's API: both have models under one path."""
    path = request.url.path
    return path.startswith("/v1/messages") or "anthropic-version" in request.headers


def _known(error: Exception, request_id: str) -> ApiError:
    known = api_error(error)
    if known is None:
        _log.error("request_failed", request_id=request_id, exc_info=error)
        known = ApiError(500, _INTERNAL, code="internal_error")
    elif known.status == 503:
        _log.warning("broker_unavailable", request_id=request_id, error=str(error))
    return known
