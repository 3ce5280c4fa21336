"""The output and error files of batches, made of the records of jobs whenever they are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import repeat

from batchmill.producer.bulk.result_lines import ended_line
from batchmill.producer.errors import UnknownBatch
from batchmill.producer.job.batch import BatchStatus
from batchmill.producer.job.line import LineKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.batches import BatchEntry, batch_entries, batch_page
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE

from .backend import Backend
from .batch_record import load_batch
from .openai_api import BATCHES, RESPONSES
from .response_record import StoredResponse, stored_responses


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file that a batch has written."""

    file_id: str
    #: `output` or `error`.
    kind: str
    batch: BatchStatus
    #: The path that its lines name.
    endpoint: str


async def batch_file(backend: Backend, key: ApiKey, file_id: str) -> BatchFile | None:
    """Return the file of a caller's batch; None if the id is not of that kind.

    Raises:
        UnknownBatch: the batch does not exist or has not ended.
    """
    prefix, _, rest = file_id.partition("-")
    kind, _, suffix = rest.partition("-")
    if prefix != "file" or kind not in ("output", "error") or not suffix:
        return None
    batch = await load_batch(backend, key, f"batch_{suffix}", BATCHES)
    if not batch.status.status.is_terminal:
        raise UnknownBatch(f"file {file_id[:200]!r} does not exist: its batch has not ended")
    return BatchFile(file_id, kind, batch.status, batch.details["endpoint"])


async def batch_file_lines(backend: Backend, file: BatchFile) -> AsyncIterator[bytes]:
    """Yield the lines of a batch's file, a hundred at a time, in the order of the input."""
    after, store = -1, await backend.shards.of_batch(file.batch.id)
    while page := await store.read(batch_page(file.batch.id, after)):
        for start in range(0, len(page), MAX_ENDS_AT_ONCE):
            some = page[start : start + MAX_ENDS_AT_ONCE]
            entries = await store.read(batch_entries(some))
            wanted = [entry for entry in entries if (file.kind == "output") == _completed(entry)]
            if wanted:
                responses = None
                if file.endpoint == RESPONSES:
                    ids = [entry.job.id for entry in wanted]
                    responses = await store.read(stored_responses(ids))
                # A page of long results would hold up the other requests.
                yield await asyncio.to_thread(_render, wanted, responses)
        after = page[-1][0]


def _completed(entry: BatchEntry) -> bool:
    return entry.job.state is JobState.COMPLETED


def _render(entries: list[BatchEntry], responses: Sequence[StoredResponse | None] | None) -> bytes:
    return b"".join(map(_line, entries, responses or repeat(None)))


def _line(entry: BatchEntry, response: StoredResponse | None) -> bytes:
    kind = LineKind(entry.endpoint or LineKind.CHAT)
    line = ended_line(f"batch_req_{entry.job.id}", entry.custom_id, kind, entry.job)
    if response is not None:
        if line["response"] is not None:
            line["response"]["body"] = response.to_object()
        elif "partial" in line:
            line["partial"] = response.to_object()
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
