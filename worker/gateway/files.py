"""`/v1/files`: uploads for batches, and the output files of batches."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from batchmill.producer.store.api_keys import ApiKey, Scope
from batchmill.producer.store.async_store import AsyncStore

from .api_errors import invalid, not_found
from .backend import Backend
from .batch_files import BatchFile, batch_file, batch_file_lines
from .caller import identify, require_scope, take_rate
from .file_record import (
    MAX_PAGE_FILES,
    FileRecord,
    created_ms,
    drop_file,
    file_object,
    list_files,
    load_files,
    new_file_id,
    store_file,
)
from .request_body import body_chunks
from .shard_stores import missing_shards
from .upload import Upload, receive_upload

#: Room for the form around a file.
_FORM_BYTES = 64 << 10
_MIN_TTL_S = 3600
#: With the shard of its record, if there are several.
_UPLOAD = re.compile(r"file-[0-9a-f]{32}(-[a-z][a-z0-9]{0,15})?")
_PURPOSES = ("batch", "batch_output")


async def create_file(request: Request) -> Response:
    """Serve `POST /v1/files`."""
    backend, key = await _caller(request, "submit")
    await take_rate(request, backend, key, 0)
    settings, store = backend.settings, await backend.shards.of_tenant(key.tenant)
    file_id = store.shard.tagged(new_file_id())
    limit = settings.gateway_max_file_bytes
    chunks = body_chunks(request, settings, limit + _FORM_BYTES)
    content_type = request.headers.get("content-type", "")
    upload = await receive_upload(content_type, chunks, backend.files, file_id, limit)
    try:
        record = _record(upload, file_id, key, settings.gateway_file_ttl_s)
        await store.read(store_file(record, store.store.key_ring))
    except BaseException:
        await asyncio.to_thread(backend.files.delete, file_id)
        raise
    return JSONResponse(record.openai())


async def list_all_files(request: Request) -> Response:
    """Serve `GET /v1/files`: uploads, newest first. Output files are found in their batches."""
    backend, key = await _caller(request, "read")
    query = request.query_params
    limit = page_limit(query.get("limit"), MAX_PAGE_FILES, MAX_PAGE_FILES)
    order, purpose, after = query.get("order", "desc"), query.get("purpose"), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid("order must be asc or desc", "order")
    if purpose not in (None, "batch"):
        return JSONResponse(page([], has_more=False))
    if after is not None and not _is_upload(after):
        raise invalid("after must be the id of a file in the list", "after")
    listing = list_files(key.tenant, after, limit, is_ascending=order == "asc")

    async def own_files(store: AsyncStore) -> tuple[bool, list[FileRecord]]:
        has_more, ids = await store.read(listing)
        found = await store.read(load_files(ids)) if ids else []
        return has_more, [each for each in found if each is not None]

    parts = await backend.shards.each(own_files)
    records = [record for _, some in parts.values for record in some]
    records.sort(key=lambda record: created_ms(record.id), reverse=order == "desc")
    data = [record.openai() for record in records[:limit]]
    has_more = len(records) > limit or any(has_more for has_more, _ in parts.values)
    return JSONResponse(page(data, has_more=has_more, missing=parts.missing))


async def get_file(request: Request) -> Response:
    """Serve `GET /v1/files/{file_id}`."""
    backend, key = await _caller(request, "read")
    file_id = request.path_params["file_id"]
    output = await batch_file(backend, key, file_id)
    if output is None:
        return JSONResponse((await load_file(backend, key, file_id)).openai())
    num_bytes = 0
    async for chunk in batch_file_lines(backend, output):
        num_bytes += len(chunk)
    return JSONResponse(_output_object(output, num_bytes))


async def get_content(request: Request) -> Response:
    """Serve `GET /v1/files/{file_id}/content`."""
    backend, key = await _caller(request, "read")
    file_id = request.path_params["file_id"]
    output = await batch_file(backend, key, file_id)
    content: AsyncIterator[bytes]
    if output is None:
        record = await load_file(backend, key, file_id)
        try:
            content = await _begun(backend.files.chunks(record.id))
        except FileNotFoundError:
            raise not_found("file", file_id) from None
    else:
        content = batch_file_lines(backend, output)
    return StreamingResponse(content, media_type="application/octet-stream")


async def delete_file(request: Request) -> Response:
    """Serve `DELETE /v1/files/{file_id}`."""
    backend, key = await _caller(request, "submit")
    file_id = request.path_params["file_id"]
    if await batch_file(backend, key, file_id) is not None:
        raise invalid(
            "an output file is part of its batch, and is kept as long as the results: "
            "BATCHMILL_RESULT_TTL_S",
            "file_id",
        )
    record = await load_file(backend, key, file_id)
    await (await backend.shards.of_file(record.id)).read(drop_file(key.tenant, record.id))
    await asyncio.to_thread(backend.files.delete, record.id)
    return JSONResponse({"id": record.id, "object": "file", "deleted": True})


async def load_file(backend: Backend, key: ApiKey, file_id: str) -> FileRecord:
    """Return an uploaded file of a caller.

    Raises:
        ApiError: there is none, it has expired, or it belongs to another tenant.
    """
    if _is_upload(file_id):
        store = await backend.shards.of_file(file_id)
        (record,) = await store.read(load_files([file_id]))
        if record is not None and record.tenant == key.tenant and record.expires_at > time.time():
            return record
    raise not_found("file", file_id)


def page_limit(text: str | None, default: int, most: int) -> int:
    """Return how many objects a page may have.

    Raises:
        ApiError: it is not a number in range.
    """
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise invalid(f"limit must be a number from 1 to {most}", "limit")
    return int(text)


def page(
    data: list[dict[str, Any]], *, has_more: bool, missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Return OpenAI's page of a list; `missing` names shards that did not reply."""
    ids = [each["id"] for each in data]
    return {
        "object": "list",
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
        **missing_shards(missing),
    }


async def _begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return chunks of which the first is read: a file that cannot be read is an error response.

    Raises:
        KeyMissing, ContentChanged: the file is sealed and cannot be opened.
    """
    first = await anext(chunks, b"")

    async def all_chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_chunks()


def _record(upload: Upload, file_id: str, key: ApiKey, ttl_s: int) -> FileRecord:
    fields = dict(upload.fields)
    purpose = fields.pop("purpose", None)
    if purpose != "batch":
        raise invalid("purpose must be batch: this version takes no other files", "purpose")
    anchor = fields.pop("expires_after[anchor]", None)
    seconds = fields.pop("expires_after[seconds]", None)
    if fields:
        name = min(fields)[:100]
        raise invalid(f"{name} is not a field of a file", name)
    if (anchor is None) != (seconds is None) or anchor not in (None, "created_at"):
        raise invalid("expires_after must have the anchor created_at, and seconds", "expires_after")
    if seconds is not None:
        if not seconds.isdecimal() or not _MIN_TTL_S <= int(seconds[:12]) <= ttl_s:
            raise invalid(
                f"expires_after.seconds must be from {_MIN_TTL_S} to {ttl_s} "
                "(BATCHMILL_GATEWAY_FILE_TTL_S)",
                "expires_after.seconds",
            )
        ttl_s = int(seconds)
    now = int(time.time())
    return FileRecord(
        id=file_id,
        tenant=key.tenant,
        filename=(upload.filename or "file")[:255],
        bytes=upload.num_bytes,
        sha256=upload.sha256,
        created_at=now,
        expires_at=now + ttl_s,
    )


def _output_object(output: BatchFile, num_bytes: int) -> dict[str, Any]:
    return file_object(
        output.file_id,
        num_bytes=num_bytes,
        filename=f"{output.batch.id}_{output.kind}.jsonl",
        purpose="batch_output",
        created_at=output.batch.finalizing_at or output.batch.created_at,
        expires_at=None,
    )


def _is_upload(file_id: str) -> bool:
    """Return whether a text can be the id of an upload."""
    return _UPLOAD.fullmatch(file_id) is not None


async def _caller(request: Request, scope: Scope) -> tuple[Backend, ApiKey]:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, scope)
    return backend, key
