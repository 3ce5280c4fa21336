"""`Route`: Starlette's, which also refuses parameters that it does not have."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette import routing

from .api_errors import invalid
from .spec.operations import OPERATIONS, documented_path

#: Anthropic's client marks requests of its beta in the URL; the bodies say what is asked for.
_ALWAYS = frozenset({"beta"})


class Route(routing.Route):
    """A route whose parameters in the URL are those of the OpenAPI document."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request.

        Raises:
            ApiError: a parameter in the URL is unknown.
        """
        operation = OPERATIONS.get((scope["method"], documented_path(self.path)))
        if operation is not None:
            known = {param.name for param in operation.query} | _ALWAYS
            given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            if unknown := {name for name, _ in given} - known:
                name = min(unknown)[:100]
                raise invalid(f"{name} is not a parameter of this path", name)
        await super().handle(scope, receive, send)
