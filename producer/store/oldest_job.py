"""The oldest job that waits: how long the queues keep their jobs waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.replies import JobState

from .store import Store

_QUEUED: Final = keys.state_index(JobState.QUEUED.value)
#: Jobs looked at in one round trip; delayed ones are passed over.
_PAGE_JOBS: Final = 1000


@dataclass(frozen=True, slots=True)
class OldestJob:
    """The job that was submitted first among those that wait and are not delayed."""

    id: str
    queue: str
    #: Seconds since it was submitted, by Redis' clock.
    age_s: float


def oldest_waiting(store: Store) -> OldestJob | None:
    """Return the oldest waiting job whose delay is over; None if no job waits."""
    start = 0
    while page := store.read(_oldest_ids(start)):
        delayed = store.read(_delayed([job_id for job_id, _ in page]))
        for job_id, at_ms in page:
            if job_id not in delayed:
                queue, now_ms = store.read(_queue_and_time(job_id))
                return OldestJob(job_id, queue, round(max(0.0, (now_ms - at_ms) / 1000), 1))
        start += len(page)
    return None


def _oldest_ids(start: int) -> Read[list[tuple[str, float]]]:
    return Read(
        lambda pipeline: pipeline.zrange(_QUEUED, start, start + _PAGE_JOBS - 1, withscores=True),
        lambda replies: [
            (job_id.decode(errors="replace"), at_ms) for job_id, at_ms in stored(replies[0], [])
        ],
        keeps_errors=True,
    )


def _delayed(job_ids: list[str]) -> Read[set[str]]:
    def parse(replies: list[Any]) -> set[str]:
        due = stored(replies[0], [None] * len(job_ids))
        return {job_id for job_id, at in zip(job_ids, due, strict=True) if at is not None}

    return Read(
        lambda pipeline: pipeline.zmscore(keys.SCHEDULED, job_ids), parse, keeps_errors=True
    )


def _queue_and_time(job_id: str) -> Read[tuple[str, float]]:
    def queue(pipeline: Any) -> None:
        pipeline.hget(keys.job(job_id), "queue")
        pipeline.time()

    def parse(replies: list[Any]) -> tuple[str, float]:
        name, (seconds, microseconds) = stored(replies[0], b"") or b"", replies[1]
        return name.decode(errors="replace"), seconds * 1000 + microseconds / 1000

    return Read(queue, parse, keeps_errors=True)
