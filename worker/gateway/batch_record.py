"""A batch of the gateway: what it notes in the batch's record, and OpenAI's object of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job.batch import BatchStatus, read_batch
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.store.api_keys import ApiKey
from batchmill.producer.store.reply_errors import unknown_batch_error
from batchmill.producer.tracing.traceparent import read_traceparent

from .backend import Backend

_FIELDS_PER_BATCH = 2


@dataclass(frozen=True, slots=True)
class GatewayBatch:
    """A batch with what the gateway noted about it."""

    status: BatchStatus
    tenant: str
    #: `api`, `rights` of the key, and OpenAI's `input_file_id`, `endpoint` and `completion_window`.
    details: dict[str, Any]
    #: The one model of its lines; None if they name several, or were not read yet.
    model: str | None
    #: Trace that its lines continue, unless they have their own; None without one.
    traceparent: str | None

    @property
    def id(self) -> str:
        """The batch."""
        return self.status.id

    def openai(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        status, has_ended = self.status, self.status.status.is_terminal
        counts = status.request_counts
        has_errors = has_ended and counts.total > counts.completed
        return {
            **status.model_dump(mode="json"),
            "endpoint": self.details["endpoint"],
            "input_file_id": self.details["input_file_id"],
            "completion_window": self.details["completion_window"],
            "output_file_id": output_id(status.id, "output")
            if has_ended and counts.completed
            else None,
            "error_file_id": output_id(status.id, "error") if has_errors else None,
            "model": self.model,
        }


def output_id(batch_id: str, kind: str) -> str:
    """Return the id of a batch's output or error file, which is made of its records when read."""
    return f"file-{kind}-{batch_id.removeprefix('batch_')}"


def load_batches(batch_ids: Sequence[str]) -> Read[list[GatewayBatch | None]]:
    """Read batches in order; None for one that does not exist or did not come by the gateway."""

    def queue(pipeline: Any) -> None:
        for batch_id in batch_ids:
            pipeline.hgetall(keys.batch(batch_id))
            pipeline.zcard(keys.batch_jobs(batch_id))

    def parse(replies: list[Any]) -> list[GatewayBatch | None]:
        return list(map(_readable, replies[::_FIELDS_PER_BATCH], replies[1::_FIELDS_PER_BATCH]))

    return Read(queue, parse, is_atomic=True, keeps_errors=True)


async def load_batch(backend: Backend, key: ApiKey, batch_id: str, api: str) -> GatewayBatch:
    """Return a batch of a caller.

    Raises:
        UnknownBatch: there is none, it belongs to another tenant, or came by another way.
    """
    store = await backend.shards.of_batch(batch_id[:200])
    (batch,) = await store.read(load_batches([batch_id[:200]]))
    if batch is None or batch.tenant != key.tenant or batch.details.get("api") != api:
        raise unknown_batch_error(batch_id[:200])
    return batch


def _readable(fields: Any, num_jobs: Any) -> GatewayBatch | None:
    try:
        known = stored(fields, default={})
        status = read_batch(known, stored(num_jobs, default=0))
        if status is None or b"gateway" not in known:
            return None
        model = known.get(b"model")
        return GatewayBatch(
            status,
            known[b"tenant"].decode(),
            json.loads(known[b"gateway"]),
            None if model is None else model.decode(),
            read_traceparent(known.get(b"traceparent")),
        )
    except (KeyError, TypeError, ValueError):
        return None
