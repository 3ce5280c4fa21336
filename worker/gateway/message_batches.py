"""Anthropic's `/v1/messages/batches`: batches whose requests come in one body."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from batchmill.producer.errors import UnknownJob, WrongState
from batchmill.producer.files.record import Record
from batchmill.producer.job.batch import parse_batch
from batchmill.producer.job.line import BulkLine
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store import batch_calls
from batchmill.producer.store.api_keys import ApiKey, Scope
from batchmill.producer.store.batch_calls import BatchOrigin, raise_if_error
from batchmill.producer.store.batches import BatchEntry, batch_entries, batch_page
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE

from .api_errors import ApiError, api_error, invalid
from .backend import Backend
from .batch_record import GatewayBatch, load_batch
from .batches import own_batches
from .caller import identify, require_scope, take_rate
from .file_record import new_file_id
from .files import page_limit
from .jobs import while_connected
from .line_request import read_batch_line
from .message_batch_object import BATCH_S, batch_id_of, batch_object, message_batch_id
from .message_object import message_object
from .openai_api import MESSAGE_BATCHES, MESSAGES
from .request_body import read_json
from .request_spans import traceparent_of_request
from .shard_stores import missing_shards

_DEFAULT_PAGE, _MAX_PAGE = 20, 1000
#: The file of the requests is kept for longer than its batch may take to be read.
_FILE_S = 2 * BATCH_S


async def create_message_batch(request: Request) -> Response:
    """Serve `POST /v1/messages/batches`: a wrong request refuses the whole batch by its place."""
    backend, key = await _caller(request, "submit")
    body = await read_json(request, backend.settings)
    await take_rate(request, backend, key, 0)
    if unknown := body.keys() - {"requests"}:
        raise invalid(f"{min(unknown)[:60]} is not a field of a batch", min(unknown)[:60])
    limit = backend.settings.gateway_max_file_lines
    requests = body.get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= limit:
        raise invalid(f"requests must be a list of 1 to {limit} requests", "requests")
    store, batch_id = await backend.shards.of_new_batch(
        keys.new_batch_id(None), key.tenant, is_keyed=False
    )
    file_id = store.shard.tagged(new_file_id())
    default_model = backend.settings.served_name
    registered, served = await backend.names_for(key.tenant), await backend.served_models()
    read_line = partial(
        read_batch_line,
        endpoint=MESSAGES,
        key=key,
        default_model=default_model,
        registered=registered,
        served=served,
    )
    lines = _checked_lines(requests, read_line)
    content = await while_connected(request, _joined(backend, lines))
    await asyncio.to_thread(_write, backend, file_id, content)
    expires_at = int(time.time()) + _FILE_S
    entry = {f"{key.tenant}/{file_id}": expires_at}
    await store.read(Read(lambda p: p.zadd(keys.FILES_EXPIRING, entry), list))
    details = {
        "api": MESSAGE_BATCHES,
        "endpoint": MESSAGES,
        "input_file_id": file_id,
        "rights": key.model_dump(include={"models", "highest_class"}),
        "num_requests": len(requests),
    }
    origin = BatchOrigin(key.tenant, key.id, json.dumps(details))
    batch_request = parse_batch({"ttl_s": float(BATCH_S)})
    traceparent = traceparent_of_request(request)
    call = batch_calls.create(batch_request, backend.settings, batch_id, origin, traceparent)
    opened = raise_if_error(await store.run(call))
    backend.wake_intake()
    batch = await load_batch(backend, key, opened.batch_id, MESSAGE_BATCHES)
    return JSONResponse(await _object(backend, batch))


async def get_message_batch(request: Request) -> Response:
    """Serve `GET /v1/messages/batches/{batch_id}`."""
    backend, key = await _caller(request, "read")
    return JSONResponse(await _object(backend, await _batch(request, backend, key)))


async def list_message_batches(request: Request) -> Response:
    """Serve `GET /v1/messages/batches`, newest first."""
    backend, key = await _caller(request, "read")
    query = request.query_params
    limit = page_limit(query.get("limit"), _DEFAULT_PAGE, _MAX_PAGE)
    after = query.get("after_id")
    after = None if after is None else batch_id_of(after)
    found, missing = await own_batches(backend, key, MESSAGE_BATCHES, after, limit + 1)
    data = [await _object(backend, batch) for batch in found[:limit]]
    return JSONResponse(
        {
            "data": data,
            "has_more": len(found) > limit,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            **missing_shards(missing),
        }
    )


async def cancel_message_batch(request: Request) -> Response:
    """Serve `POST /v1/messages/batches/{batch_id}/cancel`."""
    backend, key = await _caller(request, "submit")
    batch = await _batch(request, backend, key)
    await (await backend.shards.of_batch(batch.id)).run(batch_calls.cancel(batch.id))
    backend.run_later(backend.client.cancel_batch(batch.id))
    return JSONResponse(await _object(backend, await _batch(request, backend, key)))


async def get_message_results(request: Request) -> Response:
    """Serve `GET /v1/messages/batches/{batch_id}/results`, once the batch has ended."""
    backend, key = await _caller(request, "read")
    batch = await _batch(request, backend, key)
    _check_ended(batch)
    return StreamingResponse(_results(backend, batch.id), media_type="application/x-jsonl")


async def delete_message_batch(request: Request) -> Response:
    """Serve `DELETE /v1/messages/batches/{batch_id}`: its jobs are erased, too."""
    backend, key = await _caller(request, "submit")
    batch = await _batch(request, backend, key)
    _check_ended(batch)
    after, store = -1, await backend.shards.of_batch(batch.id)
    while page := await store.read(batch_page(batch.id, after)):
        for _, job_id in page:
            try:
                await backend.client.forget(job_id)
            except (UnknownJob, WrongState):
                continue
        after = page[-1][0]

    def queue(pipeline: Any) -> None:
        pipeline.delete(keys.batch(batch.id), keys.batch_jobs(batch.id))
        pipeline.zrem(keys.BATCHES, batch.id)
        pipeline.zrem(keys.BATCHES_DUE, batch.id)

    await store.read(Read(queue, list, is_atomic=True))
    await asyncio.to_thread(backend.files.delete, batch.details["input_file_id"])
    return JSONResponse({"id": message_batch_id(batch.id), "type": "message_batch_deleted"})


async def _joined(backend: Backend, lines: Iterator[bytes]) -> bytes:
    content = bytearray()
    while some := await backend.turns.next_lines(lines):
        content += b"".join(some)
    return bytes(content)


def _checked_lines(requests: list[Any], read_line: Callable[[Record], BulkLine]) -> Iterator[bytes]:
    """Yield the requests as lines of a file.

    Raises:
        ApiError: a request is wrong; the error names its place.
    """
    names = set[str]()
    for index, given in enumerate(requests):
        where = f"requests.{index}"
        if not isinstance(given, dict):
            raise invalid(f"{where} must be an object", where)
        line = read_line(Record(index + 1, index + 1, given))
        if line.problem is not None:
            param = f"{where}.{line.problem.param or 'params'}"
            raise invalid(f"{where}: {line.problem}", param, line.problem.code)
        if line.custom_id in names:
            raise invalid(f"{where}: custom_id is given twice", f"{where}.custom_id")
        names.add(line.custom_id)
        yield json.dumps(given, ensure_ascii=False).encode() + b"\n"


def _write(backend: Backend, file_id: str, content: bytes) -> None:
    with backend.files.open_to_write(file_id) as handle:
        handle.write(content)


async def _object(backend: Backend, batch: GatewayBatch) -> dict[str, Any]:
    """Return Anthropic's object; only if jobs have failed are their states looked at."""
    states = Counter[JobState]()
    if batch.status.request_counts.failed:
        after, store = -1, await backend.shards.of_batch(batch.id)
        while page := await store.read(batch_page(batch.id, after)):
            found = await store.read(reads.job_states([job_id for _, job_id in page]))
            states.update(state for state in found if state is not None)
            after = page[-1][0]
    return batch_object(batch, states)


async def _results(backend: Backend, batch_id: str) -> AsyncIterator[bytes]:
    """Yield the result of each request, in the order of the requests."""
    after, store = -1, await backend.shards.of_batch(batch_id)
    while page := await store.read(batch_page(batch_id, after)):
        for start in range(0, len(page), MAX_ENDS_AT_ONCE):
            entries = await store.read(batch_entries(page[start : start + MAX_ENDS_AT_ONCE]))
            yield await asyncio.to_thread(_render, entries)
        after = page[-1][0]


def _render(entries: list[BatchEntry]) -> bytes:
    return b"".join(map(_line, entries))


def _line(entry: BatchEntry) -> bytes:
    result: dict[str, Any]
    if entry.job.state is JobState.COMPLETED:
        result = {"type": "succeeded", "message": message_object(entry.job.result())}
    elif entry.job.state is JobState.CANCELLED:
        result = {"type": "canceled"}
    elif entry.job.state is JobState.EXPIRED:
        result = {"type": "expired"}
    else:
        result = {"type": "errored", "error": _error(entry).anthropic_body(entry.job.id)}
    line = {"custom_id": entry.custom_id, "result": result}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _error(entry: BatchEntry) -> ApiError:
    try:
        entry.job.result()
    except Exception as error:
        known = api_error(error)
        if known is not None:
            return known
    return ApiError(500, "the job failed", code="internal_error")


def _check_ended(batch: GatewayBatch) -> None:
    if not batch.status.status.is_terminal:
        raise invalid(f"the batch is {batch.status.status.value}: wait until it has ended")


async def _batch(request: Request, backend: Backend, key: ApiKey) -> GatewayBatch:
    batch_id = batch_id_of(request.path_params["batch_id"])
    return await load_batch(backend, key, batch_id, MESSAGE_BATCHES)


async def _caller(request: Request, scope: Scope) -> tuple[Backend, ApiKey]:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, scope)
    return backend, key
