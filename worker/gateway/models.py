"""`/v1/models`: what live workers serve, in OpenAI's and in Anthropic's form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .backend import Backend
from .caller import identify, require_scope, unknown_model
from .middleware import is_anthropic
from .shard_stores import missing_shards


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model, or an adapter of one."""

    name: str
    #: Since when it is there, seconds of unix time.
    since: int
    #: The model that an adapter changes; None for a model.
    parent: str | None = None


async def list_models(request: Request) -> Response:
    """Serve `GET /v1/models`."""
    models = await _visible(request)
    backend: Backend = request.app.state.backend
    missing = missing_shards(backend.unknown_shards)
    if not is_anthropic(request):
        listed = [_openai(backend, each) for each in models.values()]
        return JSONResponse({"object": "list", "data": listed} | missing)
    data = [_anthropic(each.name, each.since) for each in models.values()]
    edges = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse(
        {"data": data, "has_more": False, "first_id": edges[0], "last_id": edges[1]} | missing
    )


async def get_model(request: Request) -> Response:
    """Serve `GET /v1/models/{model}`."""
    models = await _visible(request)
    name = request.path_params["model"]
    if name not in models:
        raise unknown_model(name, sorted(models))
    if is_anthropic(request):
        return JSONResponse(_anthropic(name, models[name].since))
    return JSONResponse(_openai(request.app.state.backend, models[name]))


async def _visible(request: Request) -> dict[str, _Listed]:
    """Return the served models that the caller may use, then their LoRA adapters, by name."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "read")
    served = await backend.served_models()
    found = {
        name: _Listed(name, served[name]) for name in sorted(served) if key.may_use_model(name)
    }
    for name, adapter in (await backend.adapters_for(key.tenant)).items():
        if adapter.model in found and name not in found:
            found[name] = _Listed(name, adapter.added_at_ms // 1000, adapter.model)
    return found


def _openai(backend: Backend, listed: _Listed) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": listed.name,
        "object": "model",
        "created": listed.since,
        "owned_by": "batchmill",
    }
    if listed.parent is not None:
        model["parent"] = listed.parent
    served = listed.parent or listed.name
    return model | {"kinds": backend.kinds_of(served), "media": backend.media_of(served)}


def _anthropic(name: str, since: int) -> dict[str, Any]:
    created = datetime.fromtimestamp(since, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": created}
