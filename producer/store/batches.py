"""Reads of batches: their status, their jobs in the order of the input, and how those ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job.batch import BatchStatus, read_batch
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.content import Cipher

from .ended_jobs import EndedJob, ended_jobs

#: Jobs of a batch that are listed in one round trip.
PAGE_JOBS = 500


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One line of a batch whose job has ended.

    Attributes:
        index: its place in the input, from 0.
        custom_id: the caller's name for it; empty if it has none or its record is gone.
        endpoint: OpenAI's path for the format of the result; empty if its record is gone.
        job: how it ended; `job.result()` returns the result or raises.
    """

    index: int
    custom_id: str
    endpoint: str
    job: EndedJob


#: When a batch was created, milliseconds, and its id.
Position = tuple[float, str]
#: A page of a batch's jobs: their places in the input and their ids.
Page = list[tuple[int, str]]


def batches(batch_ids: Sequence[str]) -> Read[list[BatchStatus | None]]:
    """Read batches, in order; None if one is unknown or its time to live has run out."""

    def queue(pipeline: Any) -> None:
        for batch_id in batch_ids:
            pipeline.hgetall(keys.batch(batch_id))
            pipeline.zcard(keys.batch_jobs(batch_id))

    def parse(replies: list[Any]) -> list[BatchStatus | None]:
        return list(map(_readable_batch, replies[::2], replies[1::2]))

    return Read(queue, parse, is_atomic=True, keeps_errors=True)


def joined_batches(parts: Sequence[Sequence[BatchStatus]], limit: int) -> list[BatchStatus]:
    """Return the newest batches of several brokers, newest first."""
    found = [status for part in parts for status in part]
    return sorted(found, key=lambda status: status.created_at, reverse=True)[:limit]


def _readable_batch(fields: Any, num_jobs: Any) -> BatchStatus | None:
    """Return a batch; None if batchmill did not write its record, which counts as gone."""
    try:
        return read_batch(stored(fields, default={}), stored(num_jobs, default=0))
    except (KeyError, TypeError, ValueError):
        return None


def newest_batch_ids(limit: int) -> Read[list[str]]:
    """Read the ids of the newest batches, newest first."""
    return Read(
        lambda pipeline: pipeline.zrevrange(keys.BATCHES, 0, limit - 1),
        lambda replies: [batch_id.decode(errors="replace") for batch_id in replies[0]],
    )


def batch_positions(before: Position | None, num_skipped: int, limit: int) -> Read[list[Position]]:
    """Read the positions of batches, newest first: in one order over all shards.

    Args:
        before: begins at its time, so that batches of the same moment may come before it; None
            begins with the newest.
        num_skipped: batches to leave out from there on.
        limit: most batches.
    """
    newest = "+inf" if before is None else before[0]
    return Read(
        lambda pipeline: pipeline.zrevrangebyscore(
            keys.BATCHES, newest, "-inf", num_skipped, limit, withscores=True
        ),
        lambda replies: [(float(at), name.decode(errors="replace")) for name, at in replies[0]],
    )


def batch_page(batch_id: str, after_index: int) -> Read[Page]:
    """Read the jobs of the next lines after a line, in the order of the input."""
    key = keys.batch_jobs(batch_id)
    return Read(
        lambda pipeline: pipeline.zrangebyscore(
            key, f"({after_index}", "+inf", 0, PAGE_JOBS, withscores=True
        ),
        lambda replies: [
            (int(index), job_id.decode(errors="replace")) for job_id, index in replies[0]
        ],
    )


def batch_entries(page: Page) -> Read[list[BatchEntry]]:
    """Read how the jobs of a page ended."""
    ends = ended_jobs([job_id for _, job_id in page])

    def queue(pipeline: Any) -> None:
        for _, job_id in page:
            pipeline.hmget(keys.job(job_id), "custom_id", "endpoint")
        ends.queue(pipeline)

    def parse(replies: list[Any]) -> list[BatchEntry]:
        names, jobs = replies[: len(page)], ends.parse(replies[len(page) :])
        return [
            BatchEntry(index, *_readable_texts(stored(texts, default=(None, None))), job)
            for (index, _), texts, job in zip(page, names, jobs, strict=True)
        ]

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        assert ends.opens is not None
        return [*replies[: len(page)], *ends.opens(replies[len(page) :], cipher)]

    return Read(queue, parse, keeps_errors=True, opens=opens)


def _readable_texts(values: Sequence[bytes | None]) -> tuple[str, str]:
    custom_id, endpoint = ((value or b"").decode(errors="replace") for value in values)
    return custom_id, endpoint
