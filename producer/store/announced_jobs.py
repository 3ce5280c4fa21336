"""The jobs that any worker with room may take at once, and how many tokens they may need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, readable_names, stored

#: Jobs of one queue that are looked at: more than its window, unless an operator has raised that.
_MAX_JOBS: Final = 32


def announced_jobs(queues: Sequence[str]) -> Read[dict[str, list[str]]]:
    """Read the ids of the announced jobs of each queue, those that wait longest first."""

    def queue(pipeline: Any) -> None:
        for name in queues:
            pipeline.llen(keys.announced(name))
            pipeline.zrangebyscore(keys.queued(name), "-inf", "(+inf", start=0, num=_MAX_JOBS)

    def parse(replies: list[Any]) -> dict[str, list[str]]:
        each = zip(queues, replies[::2], replies[1::2], strict=True)
        # Of a message that a worker has taken just now, the record is not claimed yet.
        return {
            name: readable_names(stored(ids, ()))[: stored(num_messages, 0)]
            for name, num_messages, ids in each
        }

    return Read(queue, parse, keeps_errors=True)


def job_costs(queues: Mapping[str, Sequence[str]]) -> Read[dict[str, list[int]]]:
    """Read the estimated tokens of jobs, prompt and `max_tokens`, by queue.

    A job without a readable record is left out.
    """

    def queue(pipeline: Any) -> None:
        for ids in queues.values():
            for job_id in ids:
                pipeline.hget(keys.job(job_id), "cost")

    def parse(replies: list[Any]) -> dict[str, list[int]]:
        costs = iter(replies)
        return {
            name: [int(cost) for _ in ids if (cost := stored(next(costs), b"") or b"").isdigit()]
            for name, ids in queues.items()
        }

    return Read(queue, parse, keeps_errors=True)
