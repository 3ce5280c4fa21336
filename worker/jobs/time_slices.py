"""Lets long jobs of a full worker give way to jobs that wait, a time slice at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from batchmill.producer.protocol.attempts import AttemptCause
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import ReleaseCause
from batchmill.producer.store.announced_jobs import announced_jobs, job_costs
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.pauses import Pauses
from batchmill.worker.settings import WorkerSettings

from .active_job import ActiveJob, Release
from .active_jobs import ActiveJobs
from .fair_part import OutputShare, may_leave, num_left, num_new_tokens, pays_off
from .intake_gate import IntakeGate
from .record_writer import RecordWriter

_log = structlog.stdlib.get_logger("batchmill.time_slices")
#: Seconds between two looks while the worker is full.
LOOK_INTERVAL_S = 0.5
#: Times that a job gives way in its whole life. Its slices double, so these are far more tokens
#: than most jobs have.
MAX_SLICES: Final = 8
#: How many times the tokens of a waiting job a running one must have left.
_LEAST_RATIO: Final = 2
#: One look frees at most one place in this many; another look may follow.
_PLACES_PER_FREED: Final = 4


def select_jobs(
    jobs: Sequence[ActiveJob],
    waiting: Mapping[str, Sequence[int]],
    *,
    slice_tokens: int,
    output_share: float,
) -> list[ActiveJob]:
    """Return the jobs that should give way to jobs that wait, first those with most tokens left.

    Each gives way to one job of its own class or a higher one that needs less than half of the
    tokens that it has left itself.

    Args:
        jobs: all jobs of the worker.
        waiting: tokens that the jobs need that wait for a place, by queue, highest class first.
        slice_tokens: tokens of the first slice; each further one of a job is twice as long.
        output_share: of `max_tokens` that jobs use on average.
    """
    over = [job for job in jobs if _is_slice_over(job, slice_tokens)]
    over.sort(key=lambda job: num_left(job, output_share), reverse=True)
    costs = {name: sorted(of_queue) for name, of_queue in waiting.items()}
    chosen = []
    for job in over:
        left = num_left(job, output_share)
        # What waits uses as little of `max_tokens` as other jobs do.
        most_tokens = left / output_share / _LEAST_RATIO
        if pays_off(job, left) and _take_shorter(costs, job.queue, most_tokens):
            chosen.append(job)
    return chosen


def _take_shorter(costs: dict[str, list[int]], queue: str, most_tokens: float) -> bool:
    """Take a short job out of a queue or one of a higher class; False if there is none."""
    names = list(costs)
    for name in names[: names.index(queue) + 1] if queue in costs else ():
        if costs[name] and costs[name][0] <= most_tokens:
            costs[name].pop(0)
            return True
    return False


def _is_slice_over(job: ActiveJob, slice_tokens: int) -> bool:
    num_slices = [attempt.cause for attempt in job.claim.history].count(AttemptCause.SLICED)
    if num_slices >= MAX_SLICES or not may_leave(job):
        return False
    return num_new_tokens(job) >= slice_tokens << num_slices


class TimeSlices:
    """Frees places of a full worker whose jobs are longer than those that wait.

    A job that has generated the tokens of its slice goes back behind the waiting jobs of its
    tenant, as in a drain: its last tokens are written, and it continues from them. It keeps its
    charge, and nothing is held against it. Its blocks stay in this worker's prefix cache as long as
    others do not need them.

    Source: feedback queues with slices that double (Corbató et al., An experimental time-sharing
    system, 1962). docs/decisions/0032-time-slices.md. One thread calls `look`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        jobs: ActiveJobs,
        gate: IntakeGate,
        writer: RecordWriter,
        share: OutputShare,
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: holds the queues.
            jobs: the active jobs.
            gate: of the worker.
            writer: gives jobs back.
            share: of `max_tokens` that jobs use.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._gate = gate
        self._writer = writer
        self._share = share
        self._did_jobs_wait = False

    def look(self) -> None:
        """Free places if jobs wait that no worker has taken since the last look.

        Costs Redis nothing while the worker has room, or none of its slices is over.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        do_jobs_wait = False
        if self._is_any_slice_over():
            waiting = self._store.read(announced_jobs(self._settings.queues))
            do_jobs_wait = any(waiting.values())
            # Jobs that wait only for a moment are taken by workers with room.
            if do_jobs_wait and self._did_jobs_wait:
                self._free_places(waiting)
        self._did_jobs_wait = do_jobs_wait

    def _is_any_slice_over(self) -> bool:
        slice_tokens = self._settings.time_slice_tokens
        if not slice_tokens or not self._gate.is_full():
            return False
        jobs = self._jobs.snapshot()
        if any(job.leaving is not None for job in jobs):
            return False  # their places are about to be free
        return any(_is_slice_over(job, slice_tokens) for job in jobs)

    def _free_places(self, waiting: Mapping[str, Sequence[str]]) -> None:
        # What is paused cannot take a free place, and would wait for the end of the pause.
        pauses = Pauses(self._store).all()
        queues = {pause.name for pause in pauses if pause.kind is PauseKind.QUEUE}
        tenants = {pause.name for pause in pauses if pause.kind is PauseKind.TENANT}
        jobs = self._jobs.snapshot()
        costs = self._store.read(
            job_costs({name: [] if name in queues else ids for name, ids in waiting.items()})
        )
        chosen = select_jobs(
            [job for job in jobs if job.tenant not in tenants and job.queue not in queues],
            costs,
            slice_tokens=self._settings.time_slice_tokens,
            output_share=self._share.mean,
        )
        chosen = chosen[: max(1, len(jobs) // _PLACES_PER_FREED)]
        if chosen:
            _log.info("jobs_sliced", num_jobs=len(chosen), num_held=len(jobs))
            self._writer.begin_release(chosen, Release(ReleaseCause.SLICED))
