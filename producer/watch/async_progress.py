"""Reading the progress of jobs: their records, their places in the queues, and the workers."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.producer.progress import JobProgress, ProgressSummary
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.ended_jobs import chunks
from batchmill.producer.store.job_progress import (
    MAX_READINGS_AT_ONCE,
    JobReading,
    job_progress,
    last_waiting,
    progress_readings,
    queue_positions,
    summarise,
)
from batchmill.producer.store.reply_errors import unknown_job_error


async def progress_of(store: AsyncStore, job_id: str) -> JobProgress:
    """Return the progress of a job.

    Raises:
        UnknownJob: the job does not exist.
    """
    readings = await store.read(progress_readings([job_id]))
    if not readings:
        raise unknown_job_error(job_id)
    positions = await _positions(store, readings)
    workers = await store.list_workers()
    return job_progress(readings[0], positions.get(job_id), workers)


async def progress_of_many(store: AsyncStore, job_ids: Sequence[str]) -> ProgressSummary:
    """Return the progress of many jobs together, in few round trips."""
    readings: list[JobReading] = []
    for some in chunks(list(job_ids), MAX_READINGS_AT_ONCE):
        readings += await store.read(progress_readings(some))
    positions = await _positions(store, last_waiting(readings))
    workers = await store.list_workers()
    return summarise(len(job_ids), readings, positions, workers)


async def _positions(store: AsyncStore, readings: Sequence[JobReading]) -> dict[str, int | None]:
    """Return how many jobs come before each job, those of higher classes included."""
    own = await store.run_all([job_calls.position(reading.id) for reading in readings])
    return await store.read(queue_positions(readings, own))
