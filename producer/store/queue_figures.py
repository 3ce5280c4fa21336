"""What waits in each queue: jobs, tokens, and the age of the oldest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls.call import Read, readable_names, stored
from batchmill.producer.protocol.calls.pauses import all_pauses
from batchmill.producer.protocol.pauses import PauseKind

from .store import Store

#: `submit.lua` moves a job with a lower Celery priority back by this in its backlog, microseconds.
_US_PER_MESSAGE_PRIORITY: Final = 100_000_000_000_000
#: Prefix of the fields of `keys.USAGE` with the waiting tokens of each queue.
_TOKENS_FIELD: Final = "queue_tokens:"


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """What waits in one queue. Delayed jobs count from the end of their delay."""

    queue: str
    #: Jobs that wait and are not delayed.
    jobs: int
    #: Jobs whose delay is not over.
    delayed_jobs: int
    #: Estimated tokens of the jobs that are not delayed: prompts, and outputs at most.
    tokens: int
    #: Messages that announce jobs to workers.
    announcements: int
    #: Seconds since the oldest of these jobs was submitted, or since the end of its delay; None
    #: without a job.
    oldest_age_s: float | None

    @property
    def model(self) -> str:
        """The served model that the queue is for."""
        return self.queue.removeprefix("batchmill.").rpartition(".")[0]

    @property
    def priority(self) -> str:
        """The class of its jobs."""
        return self.queue.rpartition(".")[2]


class _Depth(NamedTuple):
    """One queue, without what is in its backlogs."""

    num_queued: int
    num_announcements: int
    announced_ids: list[str]
    tenants: list[str]


def queue_figures(store: Store) -> list[QueueFigures]:
    """Read the figures of every queue that holds jobs, by name.

    Takes four round trips; their work grows with the tenants that have waiting jobs, not with the
    jobs.

    Raises:
        redis.exceptions.RedisError: Redis did not reply.
    """
    names = store.read(reads.queue_names())
    # A paused tenant takes no turns, but its jobs wait all the same.
    paused = [each.name for each in store.read(all_pauses()) if each.kind is PauseKind.TENANT]
    depths = store.read(_depths(names))
    places = [
        (name, tenant)
        for name, depth in zip(names, depths, strict=True)
        for tenant in dict.fromkeys([*depth.tenants, *paused])
    ]
    announced = [job_id for depth in depths for job_id in depth.announced_ids]
    tokens, now_us, backlogs, starts = store.read(_waiting(names, places, announced))
    by_queue: dict[str, list[tuple[int, float | None]]] = {name: [] for name in names}
    for (name, _), backlog in backlogs.items():
        by_queue[name].append(backlog)
    figures = []
    for name, depth, num_tokens in zip(names, depths, tokens, strict=True):
        own = by_queue[name]
        since_us = [at for _, at in own if at is not None]
        since_us += [starts[job_id] for job_id in depth.announced_ids if job_id in starts]
        num_jobs = len(depth.announced_ids) + sum(number for number, _ in own)
        figures.append(
            QueueFigures(
                queue=name,
                jobs=num_jobs,
                delayed_jobs=max(0, depth.num_queued - num_jobs),
                tokens=num_tokens,
                announcements=depth.num_announcements,
                oldest_age_s=_age_s(since_us, now_us),
            )
        )
    return figures


def _age_s(since_us: Sequence[float], now_us: float) -> float | None:
    ages = [max(0.0, now_us - _without_priority(at, now_us)) / 1e6 for at in since_us]
    return max(ages, default=None)


def _without_priority(at_us: float, now_us: float) -> float:
    """Return when a job came, from its place in a backlog."""
    while at_us > now_us + _US_PER_MESSAGE_PRIORITY / 2:
        at_us -= _US_PER_MESSAGE_PRIORITY
    return at_us


def _depths(names: Sequence[str]) -> Read[list[_Depth]]:
    def queue(pipeline: Any) -> None:
        for name in names:
            pipeline.zcard(keys.queued(name))
            pipeline.llen(keys.announced(name))
            pipeline.zrangebyscore(keys.queued(name), "-inf", "(+inf")
            pipeline.zrange(keys.turns(name), 0, -1)

    def parse(replies: list[Any]) -> list[_Depth]:
        numbers = [stored(reply) for reply in replies]
        rows = zip(*(numbers[at::4] for at in range(4)), strict=True)
        return [
            _Depth(queued or 0, length or 0, readable_names(ids or ()), readable_names(names or ()))
            for queued, length, ids, names in rows
        ]

    return Read(queue, parse, keeps_errors=True)


#: A queue and a tenant.
_Place = tuple[str, str]
#: Waiting tokens per queue, the time, jobs and first place per backlog, times of jobs. In us.
_Waiting = tuple[list[int], float, Mapping[_Place, tuple[int, float | None]], Mapping[str, float]]


def _waiting(
    names: Sequence[str], places: Sequence[_Place], announced: Sequence[str]
) -> Read[_Waiting]:
    fields = [_TOKENS_FIELD + name for name in names]

    def queue(pipeline: Any) -> None:
        pipeline.time()
        pipeline.hmget(keys.USAGE, [*fields, _TOKENS_FIELD])  # never empty
        for queue_name, tenant in places:
            pipeline.zcard(keys.backlog(queue_name, tenant))
            pipeline.zrange(keys.backlog(queue_name, tenant), 0, 0, withscores=True)
        for job_id in announced:
            pipeline.hmget(keys.job(job_id), ["backlog_at_us", "enqueued_at_ms"])

    def parse(replies: list[Any]) -> _Waiting:
        (seconds, microseconds), tokens, *rest = replies
        middle = 2 * len(places)
        numbers, records = rest[:middle], rest[middle:]
        backlogs = {}
        for place, number, first in zip(places, numbers[::2], numbers[1::2], strict=True):
            head = stored(first, [])
            backlogs[place] = (stored(number, 0), head[0][1] if head else None)
        starts = {}
        for job_id, record in zip(announced, records, strict=True):
            at = _start_us(*(stored(record) or (None, None)))
            if at is not None:
                starts[job_id] = at
        counted = stored(tokens, [None] * (len(fields) + 1))[:-1]
        waiting = [int(_number(value) or 0) for value in counted]
        return waiting, seconds * 1e6 + microseconds, backlogs, starts

    return Read(queue, parse, keeps_errors=True)


def _start_us(backlog_at_us: bytes | None, enqueued_at_ms: bytes | None) -> float | None:
    """Return since when a job waits, microseconds; None if its record is gone or malformed."""
    at_us, at_ms = _number(backlog_at_us), _number(enqueued_at_ms)
    return at_us if at_us is not None else None if at_ms is None else at_ms * 1000


def _number(text: bytes | None) -> float | None:
    """Return a field as a number; None if it is missing, or anything but a finite number."""
    try:
        number = float(text or b"")
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
