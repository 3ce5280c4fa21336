"""Counts the gateway's requests for its metrics."""

from __future__ import annotations

import time
from typing import Any

from batchmill.worker.metrics.gateway_series import GatewayMeter

#: The status that is counted if the client left before the response began.
_CLIENT_LEFT = 499
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metered:
    """The outermost layer: counts each request when its response has ended."""

    def __init__(self, app: Any, meter: GatewayMeter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status, first_byte_s = _CLIENT_LEFT, None

        async def send_and_note(message: Any) -> None:
            nonlocal status, first_byte_s
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first_byte_s is None and message.get("body"):
                first_byte_s = time.monotonic() - start
            await send(message)

        self._meter.note_start()
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            # Starlette puts the route's function here; a path with ids would be a series each.
            handler = getattr(scope.get("endpoint"), "__name__", "none")
            self._meter.note_end(
                (handler, method, str(status)),
                first_byte_s=first_byte_s,
                duration_s=time.monotonic() - start,
            )
