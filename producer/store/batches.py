"""Reads of batches: their status, their jobs in the order of the input, and how those ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job.batch import BatchStatus, read_batch
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read

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


#: A page of a batch's jobs: their places in the input and their ids.
Page = list[tuple[int, str]]


def batches(batch_ids: Sequence[str]) -> Read[list[BatchStatus | None]]:
    """Read batches, in order; None if one is unknown or its time to live has run out."""

    def queue(pipeline: Any) -> None:
        for batch_id in batch_ids:
            pipeline.hgetall(keys.batch(batch_id))
            pipeline.zcard(keys.batch_jobs(batch_id))

    def parse(replies: list[Any]) -> list[BatchStatus | None]:
        return list(map(read_batch, replies[::2], replies[1::2]))

    return Read(queue, parse, is_atomic=True)


def newest_batch_ids(limit: int) -> Read[list[str]]:
    """Read the ids of the newest batches, newest first."""
    return Read(
        lambda pipeline: pipeline.zrevrange(keys.BATCHES, 0, limit - 1),
        lambda replies: [batch_id.decode() for batch_id in replies[0]],
    )


def batch_page(batch_id: str, after_index: int) -> Read[Page]:
    """Read the jobs of the next lines after a line, in the order of the input."""
    key = keys.batch_jobs(batch_id)
    return Read(
        lambda pipeline: pipeline.zrangebyscore(
            key, f"({after_index}", "+inf", 0, PAGE_JOBS, withscores=True
        ),
        lambda replies: [(int(index), job_id.decode()) for job_id, index in replies[0]],
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
            BatchEntry(index, (custom_id or b"").decode(), (endpoint or b"").decode(), job)
            for (index, _), (custom_id, endpoint), job in zip(page, names, jobs, strict=True)
        ]

    return Read(queue, parse)
