"""Reading the files of batches: each gateway takes batches, checks their lines and submits them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Collection, Iterator

import structlog

from batchmill.producer.client import async_batch_verbs
from batchmill.producer.errors import BatchClosed, BatchmillError, ContentChanged, JobRejected
from batchmill.producer.files.json_lines import json_record
from batchmill.producer.files.record import MAX_LINE_BYTES
from batchmill.producer.job.batch import BatchError
from batchmill.producer.job.line import BulkLine
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import batches as batch_scripts
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.shard_list import Shard
from batchmill.producer.store import batch_calls
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.batch_calls import OpenBatch

from .adapters import RegisteredNames
from .backend import Backend
from .batch_record import GatewayBatch, load_batches
from .file_record import drop_file, expired_files
from .line_request import read_batch_line
from .shard_stores import ShardStore

_log = structlog.get_logger(__name__)
_LEASE_MS = 30_000
_POLL_S = 2.0
#: Errors that are reported of a file; of many wrong lines the first ones tell enough.
MAX_ERRORS = 100
#: Of structures that are too complex, fewer: each may take seconds to find out.
_TOO_COMPLEX = "structure_too_complex"
_MAX_COMPLEX = 3
#: Files that one gateway reads at a time: one that waits for a full queue does not hold up others.
_NUM_READERS = 8


async def run_intakes(backend: Backend) -> None:
    """Read the files of batches, of each shard by readers of its own, until cancelled."""
    shards = backend.shards.shards.list.shards
    await asyncio.gather(
        *(_run_intake(backend, shard) for shard in shards for _ in range(_NUM_READERS))
    )


async def _run_intake(backend: Backend, shard: Shard) -> None:
    """Take batches of a shard and read their files, one after another, until cancelled."""
    while True:
        try:
            store = await backend.shards.at(shard)
            await _delete_expired(backend, store)
            batch_id = await store.run(batch_scripts.take_intake(_LEASE_MS))
            if batch_id is None:
                await backend.sleep_until_intake(_POLL_S)
                continue
            await _read_batch(backend, store, batch_id)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # The batch is taken again when its lease ends.
            named = {"shard": shard.name} if shard.name else {}
            _log.warning("batch_intake_failed", exc_info=error, **named)
            await asyncio.sleep(_POLL_S)


async def _read_batch(backend: Backend, store: ShardStore, batch_id: str) -> None:
    """Check and submit the lines of a batch, and forget that they were to be read."""
    renewing = asyncio.ensure_future(_renew(store, batch_id))
    try:
        (batch,) = await store.read(load_batches([batch_id]))
        if batch is not None and batch.status.status.value == "validating":
            await _check_and_submit(backend, store, batch)
        await store.read(Read(lambda p: p.zrem(keys.BATCH_INTAKES, batch_id), list))
    finally:
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing


async def _renew(store: ShardStore, batch_id: str) -> None:
    """Keep the batch from being taken by another gateway."""
    while True:
        await asyncio.sleep(_LEASE_MS / 3000)
        with contextlib.suppress(BatchmillError):
            await store.run(batch_scripts.take_intake(_LEASE_MS, batch_id))


async def _check_and_submit(backend: Backend, store: ShardStore, batch: GatewayBatch) -> None:
    """Check all lines, then submit them: a batch with a wrong line computes nothing."""
    errors, models = await _check(backend, batch)
    if errors:
        with contextlib.suppress(BatchmillError):
            await store.run(batch_calls.cancel(batch.id, *errors))
        return
    if len(models) == 1:
        name = models.pop()
        await store.read(Read(lambda p: p.hset(keys.batch(batch.id), "model", name), list))
    expires_at = batch.status.expires_at
    deadline_at_ms = None if expires_at is None else expires_at * 1000
    opened = OpenBatch(batch.id, deadline_at_ms, batch.traceparent)
    with contextlib.suppress(BatchClosed):  # cancelled or expired meanwhile
        await async_batch_verbs.fill_batch(
            store.store,
            backend.settings,
            opened,
            _lines(backend, batch),
            on_rejected=None,
            is_resumable=True,
        )


async def _check(backend: Backend, batch: GatewayBatch) -> tuple[list[BatchError], set[str]]:
    """Return what is wrong with the lines of a file, and the models that they name."""
    errors, models, seen = list[BatchError](), set[str](), set[bytes]()
    limit = backend.settings.gateway_max_file_lines
    num_lines = 0
    try:
        async for line in _lines(backend, batch):
            num_lines += 1
            digest = hashlib.blake2b(line.custom_id.encode(), digest_size=12).digest()
            if line.problem is not None:
                errors.append(_error(line.number, line.problem))
            elif digest in seen:
                twice = JobRejected("custom_id is given twice in the file", param="custom_id")
                errors.append(_error(line.number, twice))
            elif line.job is not None:
                models.add(line.job.model or backend.settings.served_name)
            seen.add(digest)
            num_complex = sum(error.code == _TOO_COMPLEX for error in errors)
            if len(errors) >= MAX_ERRORS or num_complex >= _MAX_COMPLEX or num_lines > limit:
                break
    except FileNotFoundError:
        return [BatchError(code="file_not_found", message="the input file was deleted")], models
    except ContentChanged as changed:
        return [BatchError(code=changed.code, message=str(changed))], models
    if num_lines > limit:
        message = (
            f"the file has more than {limit} lines, the limit; split it, or raise "
            "BATCHMILL_GATEWAY_MAX_FILE_LINES"
        )
        return [BatchError(code="too_many_lines", message=message)], models
    if not num_lines:
        return [BatchError(code="empty_file", message="the file has no lines")], models
    return errors, models


async def _lines(backend: Backend, batch: GatewayBatch) -> AsyncIterator[BulkLine]:
    """Yield the lines of a batch's file; a wrong one has its problem."""
    raw = backend.files.lines(batch.details["input_file_id"], MAX_LINE_BYTES)
    rights = {"id": "", "name": "", "tenant": batch.tenant, **batch.details["rights"]}
    context = (batch.details["endpoint"], ApiKey.model_validate(rights))
    served = await backend.served_models()
    registered = await backend.names_for(batch.tenant)
    lines = _read_lines(raw, *context, backend.settings.served_name, registered, served)
    while some := await backend.turns.next_lines(lines):
        for line in some:
            yield line


def _read_lines(
    raw_lines: Iterator[bytes],
    endpoint: str,
    key: ApiKey,
    default_model: str,
    registered: RegisteredNames,
    served: Collection[str],
) -> Iterator[BulkLine]:
    """Yield the lines of a file, on a thread: one may take seconds."""
    number = 0
    for place, raw in enumerate(raw_lines, start=1):
        if raw.strip():
            number += 1
            record = json_record(number, place, raw)
            yield read_batch_line(record, endpoint, key, default_model, registered, served)


def _error(number: int, problem: JobRejected) -> BatchError:
    return BatchError(code=problem.code, message=str(problem), line=number, param=problem.param)


async def _delete_expired(backend: Backend, store: ShardStore) -> None:
    """Delete files whose time is over."""
    for tenant, file_id in await store.read(expired_files(int(time.time()))):
        await asyncio.to_thread(backend.files.delete, file_id)
        await store.read(drop_file(tenant, file_id))
