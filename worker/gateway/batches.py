"""`/v1/batches`: batches of the lines of an uploaded file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer.job.batch import BatchRequest, parse_batch
from batchmill.producer.job.limits import MAX_TTL_S
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.store import batch_calls
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.batch_calls import BatchOrigin, raise_if_error
from batchmill.producer.store.batches import Position, batch_positions

from .api_errors import invalid
from .backend import Backend
from .batch_record import GatewayBatch, load_batch, load_batches
from .caller import identify, require_scope, take_rate
from .files import load_file, page, page_limit
from .openai_api import BATCH_ENDPOINTS, BATCHES, OTHER_BATCH_ENDPOINTS
from .request_body import read_json
from .request_spans import traceparent_of_request
from .spec.requests import BATCH

_DEFAULT_PAGE, _MAX_PAGE = 20, 100
#: Batches that are looked at together to fill a page with those of one tenant.
_SCAN = 200
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


async def create_batch(request: Request) -> Response:
    """Serve `POST /v1/batches`: the batch is open at once, and its file is read by a gateway."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    fields = BATCH.read(await read_json(request, backend.settings))
    await take_rate(request, backend, key, 0)
    details: dict[str, Any] = {"api": BATCHES, "endpoint": _endpoint(fields)}
    # The key may be revoked, or changed, before the lines are read.
    details["rights"] = key.model_dump(include={"models", "highest_class"})
    details["input_file_id"] = file_id = fields.pop("input_file_id", None)
    if not isinstance(file_id, str):
        raise invalid("input_file_id must be the id of an uploaded file", "input_file_id")
    await load_file(backend, key, file_id)
    details["completion_window"] = window = fields.pop("completion_window", None)
    batch = _request(fields, window)
    origin = BatchOrigin(key.tenant, key.id, json.dumps(details))
    store, batch_id = await backend.shards.of_new_batch(
        _batch_id(request, key), key.tenant, is_keyed="idempotency-key" in request.headers
    )
    traceparent = traceparent_of_request(request)
    call = batch_calls.create(batch, backend.settings, batch_id, origin, traceparent)
    opened = raise_if_error(await store.run(call))
    backend.wake_intake()
    created = await load_batch(backend, key, opened.batch_id, BATCHES)
    return JSONResponse(created.openai())


async def get_batch(request: Request) -> Response:
    """Serve `GET /v1/batches/{batch_id}`."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "read")
    batch = await load_batch(backend, key, request.path_params["batch_id"], BATCHES)
    return JSONResponse(batch.openai())


async def cancel_batch(request: Request) -> Response:
    """Serve `POST /v1/batches/{batch_id}/cancel`."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    batch = await load_batch(backend, key, request.path_params["batch_id"], BATCHES)
    await (await backend.shards.of_batch(batch.id)).run(batch_calls.cancel(batch.id))
    # Thousands of jobs take a while. If this process dies meanwhile, the workers' sweep goes on.
    backend.run_later(backend.client.cancel_batch(batch.id))
    return JSONResponse((await load_batch(backend, key, batch.id, BATCHES)).openai())


async def list_batches(request: Request) -> Response:
    """Serve `GET /v1/batches`: the caller's batches, newest first."""
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "read")
    query = request.query_params
    limit = page_limit(query.get("limit"), _DEFAULT_PAGE, _MAX_PAGE)
    found, missing = await own_batches(backend, key, BATCHES, query.get("after"), limit + 1)
    data = [batch.openai() for batch in found[:limit]]
    return JSONResponse(page(data, has_more=len(found) > limit, missing=missing))


async def own_batches(
    backend: Backend, key: ApiKey, api: str, after: str | None, limit: int
) -> tuple[list[GatewayBatch], tuple[str, ...]]:
    """Return the newest batches of a caller and an API after one of them.

    Returns:
        The batches, and the shards that did not reply.

    Raises:
        ApiError: that one is not in the list.
    """
    start = None
    if after is not None:
        store = await backend.shards.of_batch(after[:200])
        start = await store.read(_position(after[:200]))

    async def of_shard(store: AsyncStore) -> list[tuple[Position, GatewayBatch]]:
        found = list[tuple[Position, GatewayBatch]]()
        num_seen = 0
        while len(found) < limit:
            page = await store.read(batch_positions(start, num_seen, _SCAN))
            if not page:
                break
            batches = await store.read(load_batches([batch_id for _, batch_id in page]))
            for position, batch in zip(page, batches, strict=True):
                is_own = batch and batch.tenant == key.tenant and batch.details.get("api") == api
                if batch is not None and is_own and (start is None or position < start):
                    found.append((position, batch))
            num_seen += len(page)
        return found

    parts = await backend.shards.each(of_shard)
    found = sorted((pair for part in parts.values for pair in part), key=_place, reverse=True)
    return [batch for _, batch in found[:limit]], parts.missing


def _place(pair: tuple[Position, GatewayBatch]) -> Position:
    return pair[0]


def _position(batch_id: str) -> Read[Position]:
    def parse(replies: list[Any]) -> Position:
        if replies[0] is None:
            raise invalid("after must be the id of a batch in the list", "after")
        return float(replies[0]), batch_id

    return Read(lambda pipeline: pipeline.zscore(keys.BATCHES, batch_id), parse)


def _endpoint(fields: dict[str, Any]) -> str:
    endpoint = fields.pop("endpoint", None)
    if endpoint not in BATCH_ENDPOINTS:
        is_known = endpoint in OTHER_BATCH_ENDPOINTS
        told = f"{endpoint} is not supported by this version: " if is_known else ""
        raise invalid(
            f"{told}endpoint must be one of {', '.join(BATCH_ENDPOINTS)}",
            "endpoint",
            code="unsupported_endpoint" if is_known else "invalid_request",
        )
    return str(endpoint)


def _request(fields: Mapping[str, Any], window: Any) -> BatchRequest:
    """Return the options of the batch: OpenAI's, and the webhook of ours."""
    match = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    ttl_s = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < ttl_s <= MAX_TTL_S:
        raise invalid(
            "completion_window must be a number of minutes, hours or days such as 24h, at most "
            f"{MAX_TTL_S / 86400:g} days",
            "completion_window",
        )
    return parse_batch({**fields, "ttl_s": float(ttl_s)})


def _batch_id(request: Request, key: ApiKey) -> str:
    """Return an id: the same for the same idempotency key of a tenant."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return keys.new_batch_id(None)
    return keys.new_batch_id(f"gateway\0{key.tenant}\0{hashlib.sha256(given.encode()).hexdigest()}")
