"""One script does bounded work, whatever was deleted by hand and however many names exist."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls

QUEUE = keys.queue_name("demo", "normal")
#: `MAX_DROPPED` and `MAX_IDLE_TENANTS`.
MAX_PER_SCRIPT = 500


def test_a_claim_passes_a_bounded_number_of_records_deleted_by_hand(bench: Any) -> None:
    jobs = [bench.new_job(f"j{number:04}") for number in range(1300)]
    bench.store.run_all([job_calls.submit(job) for job in jobs])
    bench.redis.delete(*(keys.job(job.job_id) for job in jobs[8:-1]))
    bench.take_announcement()
    left = bench.redis.zcard(keys.backlog(QUEUE, "default"))

    bench.claim("j0000")

    assert left - bench.redis.zcard(keys.backlog(QUEUE, "default")) == MAX_PER_SCRIPT
    dropped = [bench.store.sweep().dropped for _ in range(3)]
    assert dropped == [MAX_PER_SCRIPT, len(jobs) - 9 - 2 * MAX_PER_SCRIPT, 0]
    assert bench.announced()[-1] == jobs[-1].job_id
    while bench.store.sweep().recounted:
        pass


def test_a_submission_passes_a_bounded_number_of_idle_tenants(bench: Any) -> None:
    bench.submit("j", tenant="waits")
    for number in range(8):
        bench.submit(f"more{number}", tenant="waits")
    idle = {f"idle{number}": -1 for number in range(1200)}
    bench.redis.zadd(keys.used(QUEUE), idle)
    bench.submit("new", tenant="newcomer")
    assert bench.redis.zcard(keys.used(QUEUE)) == len(idle) - MAX_PER_SCRIPT + 2


def test_a_sweep_visits_a_bounded_number_of_queues(bench: Any) -> None:
    names = {keys.queue_name(f"model{number}", "normal"): number for number in range(30)}
    bench.redis.zadd(keys.QUEUES, names)
    bench.submit("j")
    bench.redis.delete(keys.announced(QUEUE))
    bench.age_announcements()
    registered = []
    for _ in range(4):
        bench.store.sweep(limit=10)
        registered.append(bench.redis.zcard(keys.QUEUES))
    assert registered == [21, 11, 1, 1]  # those without a job are removed
    assert bench.announced() == ["j"]  # its queue was visited last


def test_a_queue_is_registered_as_long_as_a_job_waits_in_it(bench: Any) -> None:
    bench.submit("j")
    assert bench.take_next() == "j"
    bench.store.sweep()
    assert bench.store.queue_depths() == []
    bench.lose_lease("j")
    bench.store.sweep()
    [depth] = bench.store.queue_depths()
    assert (depth.queue, depth.queued) == (QUEUE, 1)
    bench.store.cancel("j")
    bench.store.sweep()
    assert not bench.redis.exists(keys.QUEUES, keys.used(QUEUE))
    bench.store.run(job_calls.retry("j", bench.new_job().limits))
    assert len(bench.store.queue_depths()) == 1
