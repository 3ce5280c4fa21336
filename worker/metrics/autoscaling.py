"""The backlog of each model in seconds, and how many workers it wants.

Of one model:

    speed of one worker = tokens a second, the mean over the workers that have measured it
    backlog in seconds  = waiting tokens / sum of the speeds of the ready workers
    workers wanted      = max(ceil(waiting tokens / (speed of one worker * target in seconds)),
                              ceil(jobs in workers / jobs that one worker takes))

and at least 1 if a job waits or runs, 0 otherwise. So a queue that holds as much as the wanted
workers compute within the target stays at its length, and no worker whose place is in use is given
up. Waiting tokens are those that the jobs may take at most, so the backlog is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.store.queue_figures import QueueFigures

#: A gauge in a worker's heartbeat: its tokens per second, prompts included, while it had work.
SPEED_STAT = "busy_tokens_per_s"
#: A lower speed counts as not measured, so that no figure becomes infinite: any client of Redis may
#: have written a heartbeat.
_LEAST_SPEED = 1e-3


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What waits for one model, and who serves it."""

    model: str
    #: Jobs that wait and are not delayed, and their estimated tokens.
    queued_jobs: int
    queued_tokens: int
    #: Workers by their state: `starting`, `ready` or `draining`.
    workers: dict[str, int]
    #: Jobs that workers hold.
    running_jobs: int
    #: Tokens that all workers generated per second, lately.
    tokens_per_s: float
    #: Tokens that all ready workers compute per second if they have work; None if it was never
    #: measured, or no worker is ready.
    capacity_tokens_per_s: float | None
    #: Seconds until all waiting jobs are done, at most; None if the capacity is unknown and any
    #: job waits.
    backlog_s: float | None
    workers_wanted: int


class Speeds:
    """Remembers the speed of one worker per model, for the time in which none runs."""

    def __init__(self) -> None:
        self._by_model: dict[str, float] = {}

    def of_one_worker(self, model: str, workers: Sequence[WorkerInfo]) -> float | None:
        """Return the tokens per second of one worker; None if no worker has measured it yet."""
        measured = [speed for speed in map(_speed, workers) if speed]
        if measured:
            self._by_model[model] = sum(measured) / len(measured)
        return self._by_model.get(model)


def model_figures(
    queues: Iterable[QueueFigures],
    workers: Iterable[WorkerInfo],
    speeds: Speeds,
    *,
    target_s: float,
) -> list[ModelFigures]:
    """Return the figures of every model that has jobs or workers, by name.

    Args:
        queues: all queues that hold jobs.
        workers: all workers.
        speeds: what was measured before; updated.
        target_s: seconds in which the workers are to work off what waits.
    """
    queues, workers = list(queues), list(workers)
    models = {queue.model for queue in queues} | {worker.model for worker in workers}
    return [
        _figures(
            model,
            [queue for queue in queues if queue.model == model],
            [worker for worker in workers if worker.model == model],
            speeds,
            target_s,
        )
        for model in sorted(models)
    ]


def _figures(
    model: str,
    queues: Sequence[QueueFigures],
    workers: Sequence[WorkerInfo],
    speeds: Speeds,
    target_s: float,
) -> ModelFigures:
    speed = speeds.of_one_worker(model, workers)
    ready = [worker for worker in workers if worker.state == "ready"]
    capacity = None
    if ready and speed is not None:
        capacity = sum(_speed(worker) or speed for worker in ready)
    num_tokens = sum(queue.tokens for queue in queues)
    num_jobs = sum(queue.jobs for queue in queues)
    running = int(sum(_stat(worker, "jobs") for worker in workers))
    places = max((worker.max_num_seqs for worker in workers), default=1)
    wanted = math.ceil(running / max(1, places))
    if speed is not None:
        wanted = max(wanted, math.ceil(num_tokens / (speed * target_s)))
    backlog_s = 0.0 if num_jobs == 0 else None if capacity is None else num_tokens / capacity
    states: dict[str, int] = {"starting": 0, "ready": 0, "draining": 0}
    for worker in workers:
        states[worker.state] = states.get(worker.state, 0) + 1
    return ModelFigures(
        model=model,
        queued_jobs=num_jobs,
        queued_tokens=num_tokens,
        workers=states,
        running_jobs=running,
        tokens_per_s=sum(_stat(worker, "tokens_per_s") for worker in workers),
        capacity_tokens_per_s=capacity,
        backlog_s=backlog_s,
        workers_wanted=max(wanted, 1 if num_jobs or running else 0),
    )


def _speed(worker: WorkerInfo) -> float:
    """Return a worker's tokens per second; 0 if it has measured none."""
    speed = _stat(worker, SPEED_STAT)
    return speed if speed >= _LEAST_SPEED else 0.0


def _stat(worker: WorkerInfo, name: str) -> float:
    """Return a gauge of a heartbeat; 0 if it is missing, or anything but a finite number."""
    value = worker.stats.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
