"""How many commands the scripts of a job run in Redis: a figure that grows unnoticed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import QueueLimits
from batchmill.producer.protocol.replies import CompleteStatus, JobState, TokenWrite, WriteStatus
from batchmill.producer.protocol.used_tokens import UsedTokens

NUM_JOBS = 20
#: Of a plain job: without webhook, batch, deadline, tags or encryption, with the limits that a
#: client sets, while more jobs wait than are announced.
MOST_COMMANDS = {"submit": 20, "claim": 27, "checkpoint": 5, "end": 25}


def commands_of(bench: Any, action: Callable[[], object]) -> float:
    """Return how many commands scripts run in an action, per job."""

    def count() -> int:
        stats = bench.redis.info("commandstats")
        own = ("cmdstat_evalsha", "cmdstat_script|load", "cmdstat_info", "cmdstat_rpop")
        return sum(found["calls"] for name, found in stats.items() if name not in own)

    before = count()
    action()
    return (count() - before) / NUM_JOBS


def test_a_job_takes_a_known_number_of_commands(bench: Any) -> None:
    limits = QueueLimits(max_queued_jobs=10**6, max_queued_bytes=10**12, max_queued_tokens=10**9)
    jobs = [bench.new_job(limits=limits, cost=3, reserved_bytes=4) for _ in range(2 * NUM_JOBS)]
    ids = [job.job_id for job in jobs[:NUM_JOBS]]
    fences: dict[str, str] = {}
    bench.store.run_all([job_calls.submit(job) for job in jobs[:NUM_JOBS]])

    def submit() -> None:
        bench.store.run_all([job_calls.submit(job) for job in jobs[NUM_JOBS:]])

    def claim() -> None:
        for i in ids:
            bench.take_announcement()
            fences[i] = bench.claim(i).fence

    def write(i: str, position: int) -> TokenWrite:
        return TokenWrite(i, fences[i], position, [1], text=b"x", text_position=position)

    def checkpoint() -> None:
        statuses = bench.store.checkpoint([write(i, 0) for i in ids], lease_ms=60_000)
        assert statuses == [WriteStatus.OK] * NUM_JOBS

    def end() -> None:
        calls = [
            job_calls.complete(write(i, 1), JobState.COMPLETED, "{}", None, UsedTokens(3, 2, 0))
            for i in ids
        ]
        assert bench.store.run_all(calls) == [CompleteStatus.OK] * NUM_JOBS

    actions = (submit, claim, checkpoint, end)
    used = {action.__name__: commands_of(bench, action) for action in actions}
    assert {name: value for name, value in used.items() if value > MOST_COMMANDS[name]} == {}, used
