"""The progress of jobs: the reads, and the estimate of the end.

Workers report in their heartbeats how many tokens they generate per second and for how many jobs.
The speed of a running job follows from that, and the time until the jobs before it are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from batchmill.producer.progress import EtaUnknown, JobProgress, ProgressSummary
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.pauses import Pause, pause_among, read_pauses
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.protocol.replies import JobState

PROGRESS_FIELDS: Final = (
    "state",
    "queue",
    "owner",
    "max_tokens",
    "enqueued_at_ms",
    "not_before_ms",
    "tenant",
    "model",
)
#: Jobs read in one round trip.
MAX_READINGS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class JobReading:
    """The fields of a job's record that its progress depends on."""

    id: str
    state: JobState
    queue: str
    owner: str
    max_tokens: int | None
    enqueued_at_ms: int
    output_tokens: int
    #: It has, or had, a delay or a wait for a retry.
    has_delay: bool = False
    #: A sentence about the pause that keeps it waiting; None if there is none.
    pause: str | None = None
    model: str | None = None

    @property
    def remaining_tokens(self) -> int:
        """Tokens that it may still generate."""
        return max(0, (self.max_tokens or 0) - self.output_tokens)


@dataclass(frozen=True, slots=True)
class QueueSpeed:
    """Speed of the workers of one queue."""

    num_workers: int
    #: Of all of them together.
    tokens_per_s: float
    num_jobs: int

    @property
    def tokens_per_s_per_job(self) -> float:
        """Throughput share of one job."""
        return self.tokens_per_s / max(1, self.num_jobs)


def progress_readings(job_ids: Sequence[str]) -> Read[list[JobReading]]:
    """Read the progress of those jobs that have a record. Give at most `MAX_READINGS_AT_ONCE`."""

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), PROGRESS_FIELDS)
            pipeline.strlen(keys.tokens(job_id))
        pipeline.hgetall(keys.PAUSED)

    def parse(replies: list[Any]) -> list[JobReading]:
        *of_jobs, paused = replies
        pauses = read_pauses(stored(paused, default={}))
        readings = map(partial(_readable, pauses), job_ids, of_jobs[::2], of_jobs[1::2])
        return [reading for reading in readings if reading is not None]

    return Read(queue, parse, keeps_errors=True)


def _readable(
    pauses: Sequence[Pause], job_id: str, values: Any, num_bytes: Any
) -> JobReading | None:
    """Return the progress of a job; None if batchmill did not write its record."""
    try:
        values = stored(values, default=(None,) * len(PROGRESS_FIELDS))
        return _reading(pauses, job_id, values, stored(num_bytes, default=0))
    except (AttributeError, TypeError, ValueError):
        return None


def _reading(
    pauses: Sequence[Pause], job_id: str, values: Sequence[Any], num_bytes: int
) -> JobReading | None:
    state, queue, owner, max_tokens, enqueued_at_ms, not_before_ms, tenant, model = values
    if state is None:
        return None
    pause = None
    if state == b"queued":
        pause = pause_among(pauses, queue.decode(), (tenant or b"default").decode())
    return JobReading(
        id=job_id,
        state=JobState(state.decode()),
        queue=queue.decode(),
        owner=(owner or b"").decode(),
        max_tokens=int(max_tokens) if max_tokens else None,
        enqueued_at_ms=int(enqueued_at_ms),
        output_tokens=num_bytes // 4,
        has_delay=not_before_ms is not None,
        pause=None if pause is None else pause.describe(),
        model=None if model is None else model.decode(),
    )


def last_waiting(readings: Iterable[JobReading]) -> list[JobReading]:
    """Return the newest waiting job of each queue: when that one is done, all are."""
    waiting = [reading for reading in readings if reading.state is JobState.QUEUED]
    newest: dict[str, JobReading] = {}
    for reading in waiting:
        known = newest.get(reading.queue)
        if known is None or known.enqueued_at_ms <= reading.enqueued_at_ms:
            newest[reading.queue] = reading
    return list(newest.values())


def queue_positions(
    readings: Sequence[JobReading], own: Sequence[int | None]
) -> Read[dict[str, int | None]]:
    """Read how many jobs come before each of some jobs, by id.

    Args:
        readings: the jobs.
        own: their positions in their own queues; the queues of higher classes are added.
    """

    def queue(pipeline: Any) -> None:
        for reading in readings:
            for name in _higher_queues(reading.queue):
                pipeline.zcard(keys.queued(name))

    def parse(replies: list[Any]) -> dict[str, int | None]:
        depths = iter(replies)
        found: dict[str, int | None] = {}
        for reading, position in zip(readings, own, strict=True):
            before = sum(next(depths) for _ in _higher_queues(reading.queue))
            found[reading.id] = None if position is None else position + before
        return found

    return Read(queue, parse)


def _higher_queues(queue: str) -> tuple[str, ...]:
    """Return the queues of the same model that a worker looks at before this one."""
    stem, _, priority = queue.rpartition(".")
    if priority not in keys.PRIORITIES:  # of a record that batchmill did not write
        return ()
    return tuple(f"{stem}.{name}" for name in keys.PRIORITIES[: keys.PRIORITIES.index(priority)])


def queue_speed(queue: str, workers: Iterable[WorkerInfo]) -> QueueSpeed:
    """Return the speed of the workers that take jobs from a queue."""
    serving = [w for w in workers if queue in w.queues and w.state == "ready"]
    return QueueSpeed(len(serving), sum(map(_speed, serving)), sum(map(_num_jobs, serving)))


def job_progress(
    reading: JobReading, position: int | None, workers: Sequence[WorkerInfo]
) -> JobProgress:
    """Return the progress of one job.

    Args:
        reading: its record.
        position: jobs before it, those of higher classes included; None if it does not wait.
        workers: all live workers.
    """
    speed = job_speed(reading, workers)
    progress = JobProgress(
        id=reading.id,
        state=reading.state,
        output_tokens=reading.output_tokens,
        max_tokens=reading.max_tokens,
        queue_position=position,
        tokens_per_s=speed if reading.state is JobState.IN_PROGRESS else None,
        pause=reading.pause,
        model=reading.model,
    )
    if reading.state.is_terminal:
        return progress.model_copy(update={"eta_s": 0.0})
    unknown = _why_unknown(reading, position, workers)
    if unknown is not None:
        return progress.model_copy(update=_reason(unknown, reading, workers))
    eta_s = reading.remaining_tokens / speed
    if position is not None and reading.max_tokens is not None:
        # The jobs before it are assumed to be as long as it is.
        ahead = position * reading.max_tokens
        eta_s += ahead / queue_speed(reading.queue, workers).tokens_per_s
    return progress.model_copy(update={"eta_s": round(eta_s, 1)})


def job_speed(reading: JobReading, workers: Iterable[WorkerInfo]) -> float:
    """Return the tokens per second that a job gets, or would get if it ran."""
    workers = list(workers)
    for worker in workers:
        if reading.state is JobState.IN_PROGRESS and worker.name == reading.owner:
            return _speed(worker) / max(1, _num_jobs(worker))
    return queue_speed(reading.queue, workers).tokens_per_s_per_job


def summarise(
    num_jobs: int,
    readings: Sequence[JobReading],
    positions: Mapping[str, int | None],
    workers: Sequence[WorkerInfo],
) -> ProgressSummary:
    """Return the progress of many jobs together.

    Args:
        num_jobs: how many were asked for.
        readings: the records that were found.
        positions: of `last_waiting`, by id, as for `job_progress`.
        workers: all live workers.
    """
    states: dict[JobState, int] = {}
    for reading in readings:
        states[reading.state] = states.get(reading.state, 0) + 1
    running = [reading for reading in readings if reading.state is JobState.IN_PROGRESS]
    summary = ProgressSummary(
        total=num_jobs,
        done=sum(number for state, number in states.items() if state.is_terminal),
        unknown=num_jobs - len(readings),
        states=states,
        output_tokens=sum(reading.output_tokens for reading in readings),
        tokens_per_s=round(sum(job_speed(reading, workers) for reading in running), 1),
    )
    unfinished = [reading for reading in readings if not reading.state.is_terminal]
    for reading in unfinished:
        position = positions.get(reading.id, 0)
        unknown = _why_unknown(reading, position, workers)
        if unknown is not None:
            reason = _reason(unknown, reading, workers)
            return summary.model_copy(update={**reason, "pause": reading.pause})
    queues = {reading.queue for reading in unfinished}
    etas_s = [_queue_eta_s(queue, unfinished, positions, workers) for queue in queues]
    return summary.model_copy(update={"eta_s": round(max(etas_s, default=0.0), 1)})


def _queue_eta_s(
    queue: str,
    unfinished: Sequence[JobReading],
    positions: Mapping[str, int | None],
    workers: Sequence[WorkerInfo],
) -> float:
    """Return the seconds until all jobs of one queue are done, and those before the last."""
    own = [reading for reading in unfinished if reading.queue == queue]
    waiting = [reading for reading in own if reading.state is JobState.QUEUED]
    running = sum(r.remaining_tokens for r in own if r.state is JobState.IN_PROGRESS)
    backlog = sum(reading.remaining_tokens for reading in waiting)
    if waiting:
        # Other jobs before the last of them are assumed to have the average length of these.
        num_before = max(((positions.get(r.id) or 0) + 1 for r in waiting), default=0)
        backlog = max(backlog, round(num_before * backlog / len(waiting)))
    return (running + backlog) / queue_speed(queue, workers).tokens_per_s


def _why_unknown(
    reading: JobReading, position: int | None, workers: Sequence[WorkerInfo]
) -> EtaUnknown | None:
    """Return why the end of an unfinished job cannot be estimated; None if it can."""
    if reading.pause is not None:
        return EtaUnknown.PAUSED
    speed = queue_speed(reading.queue, workers)
    if speed.num_workers == 0:
        return EtaUnknown.NO_WORKER
    if reading.state is JobState.QUEUED and position is None and reading.has_delay:
        return EtaUnknown.SCHEDULED
    if reading.max_tokens is None:
        return EtaUnknown.NO_LENGTH
    if speed.tokens_per_s == 0 or job_speed(reading, workers) == 0:
        return EtaUnknown.NO_SPEED
    return None


def _reason(
    unknown: EtaUnknown, reading: JobReading, workers: Iterable[WorkerInfo]
) -> dict[str, Any]:
    """Return the fields of a progress that say why the end is unknown."""
    if unknown is not EtaUnknown.NO_WORKER:
        return {"eta_unknown": unknown}
    return {
        "eta_unknown": unknown,
        "unserved_model": reading.model or reading.queue,
        "served_models": served_models(workers),
    }


def served_models(workers: Iterable[WorkerInfo]) -> tuple[str, ...]:
    """Return the models that ready workers serve."""
    return tuple(sorted({worker.model for worker in workers if worker.state == "ready"}))


def _speed(worker: WorkerInfo) -> float:
    return float(worker.stats.get("tokens_per_s", 0))


def _num_jobs(worker: WorkerInfo) -> int:
    return int(worker.stats.get("jobs", 0))
