"""The trace of a request: its caller's, continued by a span of the gateway if there are spans."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from batchmill.producer.tracing.sending import fail_span, parent_context, traceparent_of
from batchmill.producer.tracing.traceparent import TRACEPARENT, read_traceparent


class RequestSpans:
    """Gives each request the context that its jobs continue, in `request.state.traceparent`."""

    def __init__(self, app: Any, tracer: Any) -> None:
        """Wrap an application.

        Args:
            app: the application.
            tracer: OpenTelemetry's; None makes no spans.
        """
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state[TRACEPARENT] = read_traceparent(Headers(scope=scope).get(TRACEPARENT))
        if self._tracer is None:
            await self._app(scope, receive, send)
            return
        span = _start(self._tracer, scope["method"], state[TRACEPARENT])
        state[TRACEPARENT] = traceparent_of(span)

        async def send_and_note(message: Any) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    fail_span(span, str(status))
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            fail_span(span, type(error).__name__)
            raise
        finally:
            _name_by_route(span, scope)
            span.end()


def traceparent_of_request(request: Request) -> str | None:
    """Return the context that the jobs of a request continue; None without one."""
    return getattr(request.state, TRACEPARENT, None)


def _start(tracer: Any, method: str, traceparent: str | None) -> Any:
    from opentelemetry.trace import SpanKind

    return tracer.start_span(
        method,
        context=parent_context(traceparent),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": method},
    )


def _name_by_route(span: Any, scope: Any) -> None:
    """Name the span by the route, of which there are few, and never by the path."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    if job_id := scope["state"].get("job_id"):
        span.set_attribute("batchmill.job.id", job_id)
