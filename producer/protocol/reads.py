"""Reads as values: job records, tokens, dead letters, heartbeats and queues.

Pure functions without input or output. A read names the commands and parses their replies; a store
sends them in one round trip. Reads for clients (status, progress, output) are in `store`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from . import keys
from .calls.call import Read, readable_names, stored
from .content import Cipher, opened
from .opening import letter_place, open_output, open_record
from .records import DeadLetter, JobRecord, read_dead_letter, read_job, read_state
from .replies import JobState
from .store_counts import QueueDepth, StoreCounts
from .token_bytes import decode_tokens

#: Stands for a key of another type.
_NO_HASH: Final = {b"": b""}


def job(job_id: str) -> Read[JobRecord | None]:
    """Read a job's record; None if the job is unknown or its time to live has run out."""
    return Read(
        lambda pipeline: pipeline.hgetall(keys.job(job_id)),
        lambda replies: read_job(replies[0]),
        opens=lambda replies, cipher: [open_record(cipher, job_id, replies[0])],
    )


def job_states(job_ids: Sequence[str]) -> Read[list[JobState | None]]:
    """Read the states of jobs, in order; None for each unknown job."""

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            pipeline.hget(keys.job(job_id), "state")

    return Read(
        queue, lambda replies: [read_state(stored(reply)) for reply in replies], keeps_errors=True
    )


def idempotent_jobs(places: Sequence[tuple[str, str]]) -> Read[list[str | None]]:
    """Read which jobs stand for idempotency keys, in order; None for a key that is not in use.

    Args:
        places: tenants and keys.
    """

    def queue(pipeline: Any) -> None:
        for tenant, key in places:
            pipeline.hget(keys.idempotency(tenant, key), "id")

    def parse(replies: list[Any]) -> list[str | None]:
        ids = [stored(reply) for reply in replies]
        return [None if job_id is None else job_id.decode(errors="replace") for job_id in ids]

    return Read(queue, parse, keeps_errors=True)


def tokens(job_id: str, start: int) -> Read[list[int]]:
    """Read the generated token ids from index `start` on."""

    def queue(pipeline: Any) -> None:
        pipeline.get(keys.tokens(job_id))  # all: a sealed piece may begin before
        pipeline.hgetall(keys.seals(job_id))

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        data, seals = replies
        return [open_output(cipher, job_id, "tokens", data or b"", seals), {}]

    return Read(
        queue,
        lambda replies: decode_tokens(replies[0])[start:],
        is_atomic=True,
        opens=opens,
    )


def num_tokens(job_id: str) -> Read[int]:
    """Read how many generated tokens are stored."""
    return Read(
        lambda pipeline: pipeline.strlen(keys.tokens(job_id)), lambda replies: replies[0] // 4
    )


def dead_letters(letter_ids: Sequence[str | bytes]) -> Read[list[DeadLetter | None]]:
    """Read dead letters, in order; None for each that does not exist."""

    def queue(pipeline: Any) -> None:
        for letter_id in letter_ids:
            pipeline.hgetall(_dead_key(letter_id))

    def parse(replies: list[Any]) -> list[DeadLetter | None]:
        return [
            read_dead_letter(letter_id, stored(reply, default=_NO_HASH))
            for letter_id, reply in zip(letter_ids, replies, strict=True)
        ]

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        return [
            _opened_letter(cipher, letter_id, reply)
            for letter_id, reply in zip(letter_ids, replies, strict=True)
        ]

    return Read(queue, parse, keeps_errors=True, opens=opens)


def _opened_letter(cipher: Cipher, letter_id: str | bytes, fields: Any) -> Any:
    """Return the fields of a dead letter, opened."""
    if not isinstance(fields, dict) or b"payload" not in fields:
        return fields
    place = letter_place(letter_id, fields.get(b"kind"))
    return {**fields, b"payload": opened(cipher, fields[b"payload"], place)}


def dead_letter_ids(offset: int, limit: int) -> Read[list[bytes]]:
    """Read the ids of dead letters, newest first, as bytes: batchmill may not have written them."""
    return Read(
        lambda pipeline: pipeline.zrevrange(keys.DEAD, offset, offset + limit - 1),
        lambda replies: list(replies[0]),
    )


def worker_names() -> Read[list[str]]:
    """Read the names of registered workers, sorted; some may have died."""
    return Read(
        lambda pipeline: pipeline.smembers(keys.WORKERS),
        lambda replies: readable_names(replies[0]),
    )


def heartbeats(names: Sequence[str]) -> Read[list[bytes | None]]:
    """Read the heartbeats of workers, in order; None for each worker that is gone."""

    def queue(pipeline: Any) -> None:
        for name in names:
            pipeline.get(keys.worker(name))

    return Read(queue, lambda replies: list(map(stored, replies)), keeps_errors=True)


def queue_names() -> Read[list[str]]:
    """Read the names of the queues that hold jobs, sorted."""
    return Read(
        lambda pipeline: pipeline.zrange(keys.QUEUES, 0, -1),
        lambda replies: readable_names(replies[0]),
    )


def queue_depths(names: Sequence[str]) -> Read[list[QueueDepth]]:
    """Read how many jobs and announcements each queue holds, in order."""

    def queue(pipeline: Any) -> None:
        for name in names:
            pipeline.zcard(keys.queued(name))
            pipeline.llen(keys.announced(name))

    def parse(replies: list[Any]) -> list[QueueDepth]:
        numbers = [stored(reply, default=0) for reply in replies]
        depths = zip(names, numbers[::2], numbers[1::2], strict=True)
        return [QueueDepth(name, queued, announced) for name, queued, announced in depths]

    return Read(queue, parse, keeps_errors=True)


def counts(depths: Sequence[QueueDepth]) -> Read[StoreCounts]:
    """Read the totals of the store, given the depths of its queues."""

    def queue(pipeline: Any) -> None:
        pipeline.hgetall(keys.TOTALS)
        for key in (keys.SCHEDULED, keys.LEASES, keys.OUTBOX, keys.DEAD, keys.INBOX_TAKEN):
            pipeline.zcard(key)
        pipeline.llen(keys.INBOX)
        pipeline.llen(keys.INBOX_ARRIVED)

    def parse(replies: list[Any]) -> StoreCounts:
        totals, *numbers = replies
        scheduled, in_progress, outbox, dead_letters, *inbox = (stored(x, 0) for x in numbers)
        return StoreCounts(
            queued=sum(depth.queued for depth in depths),
            scheduled=scheduled,
            in_progress=in_progress,
            outbox=outbox,
            dead_letters=dead_letters,
            inbox=sum(inbox),
            totals=_read_totals(stored(totals, {})),
        )

    return Read(queue, parse, keeps_errors=True)


def _read_totals(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    counters = {name: value for name, value in fields.items() if value.isdigit()}
    return {name: int(counters[name.encode()]) for name in readable_names(counters)}


def _dead_key(letter_id: str | bytes) -> bytes:
    name = letter_id.encode() if isinstance(letter_id, str) else letter_id
    return keys.dead("").encode() + name
