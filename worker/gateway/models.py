"""`/v1/models`: what live workers serve, in OpenAI's and in Anthropic's form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .backend import Backend
from .caller import identify, require_scope, unknown_model
from .middleware import is_anthropic


async def list_models(request: Request) -> Response:
    """Serve `GET /v1/models`."""
    models = await _visible(request)
    if not is_anthropic(request):
        backend: Backend = request.app.state.backend
        listed = [_openai(*item, backend.kinds_of(item[0])) for item in models.items()]
        return JSONResponse({"object": "list", "data": listed})
    data = [_anthropic(*item) for item in models.items()]
    edges = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse(
        {"data": data, "has_more": False, "first_id": edges[0], "last_id": edges[1]}
    )


async def get_model(request: Request) -> Response:
    """Serve `GET /v1/models/{model}`."""
    models = await _visible(request)
    name = request.path_params["model"]
    if name not in models:
        raise unknown_model(name, sorted(models))
    if is_anthropic(request):
        return JSONResponse(_anthropic(name, models[name]))
    backend: Backend = request.app.state.backend
    return JSONResponse(_openai(name, models[name], backend.kinds_of(name)))


async def _visible(request: Request) -> dict[str, int]:
    """Return the served models that the caller may use, by name, with the time of their start."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "read")
    served = await backend.served_models()
    return {name: served[name] for name in sorted(served) if key.may_use_model(name)}


def _openai(name: str, since: int, kinds: list[str]) -> dict[str, Any]:
    model = {"id": name, "object": "model", "created": since, "owned_by": "batchmill"}
    return model | {"kinds": kinds}


def _anthropic(name: str, since: int) -> dict[str, Any]:
    created = datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": created}
