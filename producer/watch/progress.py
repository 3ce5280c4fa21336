# Generated from async_progress.py by tests/structure/generate_sync.py: change that file.
"""Reading the progress of jobs: their records, their places in the queues, and the workers."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.producer.progress import JobProgress, ProgressSummary
from batchmill.producer.protocol.calls import jobs as job_calls
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
from batchmill.producer.store.store import Store


def progress_of(store: Store, job_id: str) -> JobProgress:
    """Return the progress of a job.

    Raises:
        UnknownJob: the job does not exist.
    """
    readings = store.read(progress_readings([job_id]))
    if not readings:
        raise unknown_job_error(job_id)
    positions = _positions(store, readings)
    workers = store.list_workers()
    return job_progress(readings[0], positions.get(job_id), workers)


def progress_of_many(store: Store, job_ids: Sequence[str]) -> ProgressSummary:
    """Return the progress of many jobs together, in few round trips."""
    readings: list[JobReading] = []
    for some in chunks(list(job_ids), MAX_READINGS_AT_ONCE):
        readings += store.read(progress_readings(some))
    positions = _positions(store, last_waiting(readings))
    workers = store.list_workers()
    return summarise(len(job_ids), readings, positions, workers)


def _positions(store: Store, readings: Sequence[JobReading]) -> dict[str, int | None]:
    """Return how many jobs come before each job, those of higher classes included."""
    own = store.run_all([job_calls.position(reading.id) for reading in readings])
    return store.read(queue_positions(readings, own))
