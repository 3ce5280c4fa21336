"""Faults of workers, engines and Redis cost at most a few recomputed tokens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.jobs.active_job import SUSPECT_GROUP

from ...conftest import RedisServer
from ..conftest import Mill, stored_error, stored_result
from ..monitor import Monitor

QUEUE = keys.queue_name("demo", "normal")
#: Slow enough that a test can act while a job runs.
SLOW = {"step_time_s": 0.02}
CHECKPOINT_TOKENS = 8


def text_of(record: Any) -> str:
    return str(stored_result(record)["text"])


def test_sigterm_gives_jobs_back_and_the_next_worker_continues(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=150) for number in range(8)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)

    assert worker.end(signal.SIGTERM) == 0

    for job_id in job_ids:
        record = mill.record(job_id)
        assert (record.state, record.suspect, record.crashes) == (JobState.QUEUED, 0, 0)
    assert mill.store.list_workers() == []
    mill.start_worker("w2", stub={"step_time_s": 0.002})
    for number, record in enumerate(mill.wait_ended(*job_ids)):
        token_ids, text = reference(f"prompt {number}", 150)
        assert [attempt.cause for attempt in record.history] == ["drain", "completed"]
        assert text_of(record) == text
        assert mill.store.read_tokens(record.id) == token_ids
        # A drain waits for the last tokens, so none is computed again.
        assert mill.computed(record.id) == list(range(150))


def test_a_cold_shutdown_gives_jobs_back_too(mill: Mill) -> None:
    worker = mill.start_worker(stub=SLOW)
    job_id = mill.submit(max_tokens=500)
    mill.wait_tokens(job_id, 10)

    worker.end(signal.SIGQUIT)

    record = mill.record(job_id)
    assert (record.state, record.suspect) == (JobState.QUEUED, 0)
    assert mill.computed(job_id) == list(range(len(mill.store.read_tokens(job_id))))


def test_a_killed_worker_costs_at_most_a_checkpoint_interval(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=80) for number in range(4)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 20)
    engine_pid = mill.engine_pid(worker)

    worker.end(signal.SIGKILL)

    mill.wait_for(
        lambda: not os.path.exists(f"/proc/{engine_pid}"), "the engine to die with its worker"
    )
    mill.start_worker("w2", stub={"step_time_s": 0.002})
    for number, record in enumerate(mill.wait_ended(*job_ids)):
        computed = mill.computed(record.id)
        # The current step, and the tokens since the last checkpoint.
        assert len(computed) - len(set(computed)) <= CHECKPOINT_TOKENS + 1
        assert text_of(record) == reference(f"prompt {number}", 80)[1]
        # A lost worker says nothing about its jobs.
        assert (record.attempts, record.suspect) == (2, 0)
        lost, last = record.history
        # Which of the two comes first depends on how long the new worker takes to start.
        assert lost.cause in ("lease_expired", "worker_lost")
        assert last.cause == "completed"
        assert lost.tokens_at_end == last.tokens_at_claim
        assert lost.worker != last.worker


def test_a_dead_engine_is_replaced_and_its_jobs_resume(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=80) for number in range(4)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)
    engine_pid = mill.engine_pid(worker)

    os.kill(engine_pid, signal.SIGKILL)

    for number, record in enumerate(mill.wait_ended(*job_ids)):
        assert text_of(record) == reference(f"prompt {number}", 80)[1]
        assert (record.attempts, record.suspect) == (2, 1)
        assert [attempt.cause for attempt in record.history] == ["engine_death", "completed"]
        # The worker is alive, so the tokens that it had received are not computed again.
        assert len(mill.computed(record.id)) <= 81
    assert worker.process.poll() is None
    mill.wait_for(lambda: mill.engine_pid(worker) != engine_pid, "the new engine's heartbeat")


def test_a_poison_job_crashes_alone_three_times_and_spares_its_batch(mill: Mill) -> None:
    worker = mill.start_worker(stub={"step_time_s": 0.005})
    poison = mill.submit("bad <<crash@3>>", max_tokens=50, webhook="https://example.com/hook")
    mates = [mill.submit(f"good {number}", max_tokens=120) for number in range(3)]

    (record, *others) = mill.wait_ended(poison, *mates, timeout_s=60)

    assert record.state is JobState.FAILED
    assert stored_error(record)["code"] == "attempts_exhausted"
    assert record.crashes == 3
    assert [other.state for other in others] == [JobState.COMPLETED] * 3
    assert [other.crashes for other in others] == [0] * 3
    (letter,) = mill.store.dead_letters()
    assert (letter.id, letter.kind) == (poison, DeadLetterKind.JOB)
    assert worker.process.poll() is None


def test_most_companions_of_a_poison_job_are_cleared_in_groups(mill: Mill) -> None:
    mill.start_worker(stub={"step_time_s": 0.002})
    poison = mill.submit("bad <<crash@20>>", max_tokens=40)
    mates = [mill.submit(f"good {number}", max_tokens=200) for number in range(23)]

    (record, *others) = mill.wait_ended(poison, *mates, timeout_s=60)

    assert (record.suspect, record.crashes) == (3, 3)
    assert [other.state for other in others] == [JobState.COMPLETED] * 23
    assert sum(other.suspect == 3 for other in others) < SUSPECT_GROUP


def test_an_exception_in_a_step_is_an_engine_death(mill: Mill) -> None:
    mill.start_worker(stub={"step_time_s": 0.005})
    bad = mill.submit("bad <<raise@2>>")

    (record,) = mill.wait_ended(bad, timeout_s=60)

    assert stored_error(record)["code"] == "attempts_exhausted"


def test_a_hung_engine_is_killed_and_its_jobs_resume(mill: Mill) -> None:
    worker = mill.start_worker(engine_stall_s=0.7, lease_s=4)
    mate = mill.submit("good", max_tokens=1000)
    mill.wait_tokens(mate, 10)
    hanging = mill.submit("bad <<hang@2>>")

    (record, other) = mill.wait_ended(hanging, mate, timeout_s=60)

    assert stored_error(record)["code"] == "attempts_exhausted"
    assert {attempt.cause for attempt in record.history} == {"engine_stall"}
    assert other.state is JobState.COMPLETED
    assert worker.process.poll() is None


def test_a_worker_frozen_past_its_lease_is_fenced_and_corrupts_nothing(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    frozen = mill.start_worker(stub=SLOW, lease_s=1)
    job_id = mill.submit(max_tokens=100)
    mill.wait_tokens(job_id, 10)
    frozen.send(signal.SIGSTOP)
    mill.start_worker("w2", stub=SLOW, lease_s=1)
    mill.wait_for(lambda: mill.record(job_id).attempts == 2, "the second claim")
    token_ids, text = reference("a prompt", 100)

    frozen.send(signal.SIGCONT)
    mill.wait_for(lambda: "job_dropped" in frozen.log or "end_not_written" in frozen.log, "fence")

    (record,) = mill.wait_ended(job_id)
    assert (record.fence, record.owner) == (2, "w2@test")
    assert text_of(record) == text
    assert mill.store.read_tokens(job_id) == token_ids
    # It continues to serve.
    again = mill.submit("another", max_tokens=3)
    assert mill.wait_ended(again)[0].state is JobState.COMPLETED


def test_an_outage_of_redis_costs_nothing(
    private_mill: Mill, private_redis_server: RedisServer
) -> None:
    mill = private_mill
    worker = mill.start_worker(stub=SLOW, lease_s=30, max_backlog_tokens=100)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=150) for number in range(4)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)

    private_redis_server.kill()
    # Generation continues until the backlog is larger than the settings allow.
    mill.wait_for(lambda: "generation_paused" in worker.log, "a full backlog")
    private_redis_server.start()
    mill.wait_for(lambda: "generation_continues" in worker.log, "the backlog to be written")

    for record in mill.wait_ended(*job_ids, timeout_s=60):
        assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
        assert mill.computed(record.id) == list(range(150))
    later = mill.submit("after the outage")
    assert mill.wait_ended(later, timeout_s=60)[0].state is JobState.COMPLETED


def test_an_outage_of_redis_longer_than_the_lease_takes_no_job_away(
    private_mill: Mill, private_redis_server: Any, reference: Callable[..., Any]
) -> None:
    mill = private_mill
    for name in ("w1", "w2"):
        mill.start_worker(name, stub=SLOW, lease_s=1)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=300) for number in range(4)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)

    private_redis_server.kill()
    time.sleep(4)  # four leases
    private_redis_server.start()

    for number, record in enumerate(mill.wait_ended(*job_ids)):
        assert (record.attempts, record.suspect) == (1, 0)
        assert text_of(record) == reference(f"prompt {number}", 300)[1]
        assert mill.computed(record.id) == list(range(300))


def test_a_step_longer_than_the_lease_loses_no_job(mill: Mill) -> None:
    mill.start_worker(stub={"step_time_s": 1.5}, lease_s=0.5)
    job_id = mill.submit(max_tokens=3)

    (record,) = mill.wait_ended(job_id)

    assert (record.state, record.attempts, record.suspect) == (JobState.COMPLETED, 1, 0)


def test_every_job_that_a_shutdown_gives_back_is_reported_to_celery(mill: Mill) -> None:
    client = mill.store.client
    num_listeners = client.pubsub_numpat()
    monitor = Monitor(mill.celery)
    mill.wait_for(lambda: client.pubsub_numpat() > num_listeners, "the monitor to listen")
    worker = mill.start_worker(stub=SLOW)
    job_ids = [mill.submit(f"prompt {number}", max_tokens=500) for number in range(12)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 1)

    worker.end(signal.SIGTERM)

    expected = ["task-received", "task-started", "task-retried"]
    try:
        mill.wait_for(
            lambda: all(monitor.types_of(job_id) == expected for job_id in job_ids),
            "the events of all jobs",
        )
    finally:
        monitor.close()


def test_sigterm_during_an_outage_of_redis_still_ends_in_time(
    private_mill: Mill, private_redis_server: RedisServer
) -> None:
    mill = private_mill
    worker = mill.start_worker(stub=SLOW, drain_timeout_s=3)
    job_id = mill.submit(max_tokens=500)
    mill.wait_tokens(job_id, 10)
    private_redis_server.kill()
    mill.wait_for(lambda: "redis_unavailable" in worker.log, "the outage to be noticed")

    worker.end(signal.SIGTERM, timeout_s=45)

    private_redis_server.start()
    mill.start_worker("w2")
    (record,) = mill.wait_ended(job_id)
    assert (record.state, record.attempts) == (JobState.COMPLETED, 2)


def test_a_full_redis_stops_neither_running_jobs_nor_the_worker(mill: Mill) -> None:
    worker = mill.start_worker(stub=SLOW)
    running = [mill.submit(f"prompt {number}", max_tokens=60) for number in range(4)]
    for job_id in running:
        mill.wait_tokens(job_id, 10)
    waiting = mill.submit("too late", max_tokens=5)

    mill.store.client.config_set("maxmemory", "1")

    for record in mill.wait_ended(*running):
        assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
        assert len(mill.store.read_tokens(record.id)) == 60
    mill.store.client.config_set("maxmemory", "0")
    assert mill.wait_ended(waiting)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None


def test_a_plain_celery_task_that_meets_a_full_redis_runs_and_spares_the_worker(
    mill: Mill,
) -> None:
    worker = mill.start_worker(max_num_seqs=1, stub=SLOW)
    running = mill.submit(max_tokens=60)
    mill.wait_tokens(running, 2)
    # It stays in its queue until the slot is free; then Redis refuses the note in `unacked`.
    sent = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": {"prompt": "x"}}, queue=QUEUE)
    mill.store.client.config_set("maxmemory", "1")

    mill.wait_for(lambda: mill.store.load(sent.id), "its record")
    mill.store.client.config_set("maxmemory", "0")

    assert mill.wait_ended(running)[0].state is JobState.COMPLETED
    assert mill.wait_ended(mill.submit("after it"))[0].state is JobState.COMPLETED
    assert worker.process.poll() is None


def test_leases_are_renewed_even_if_checkpoints_are_rare(mill: Mill) -> None:
    mill.start_worker(
        lease_s=1, checkpoint_interval_s=3, checkpoint_tokens=1000, stub={"step_time_s": 0.05}
    )
    (record,) = mill.wait_ended(mill.submit(max_tokens=50))
    assert (record.state, record.attempts) == (JobState.COMPLETED, 1)


def test_a_worker_that_reloads_its_model_is_not_ready(mill: Mill) -> None:
    worker = mill.start_worker(stub={"load_time_s": 3})

    os.kill(mill.engine_pid(worker), signal.SIGKILL)

    mill.wait_for(lambda: mill.heartbeat(worker) is None, "the heartbeat to show the death")
    assert [beat.state for beat in mill.store.list_workers()] == ["starting"]
    mill.wait_for(lambda: mill.heartbeat(worker) is not None, "the new engine")


def test_a_plain_celery_task_gets_its_result_from_the_worker_that_ends_it(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(stub=SLOW)
    sent = mill.celery.send_task(
        "batchmill.generate",
        kwargs={"job": {"prompt": "inline", "seed": 7, "max_tokens": 80}},
        queue="batchmill.demo.normal",
    )
    mill.wait_for(lambda: len(mill.store.read_tokens(sent.id)) >= 10, "tokens")
    worker.end(signal.SIGTERM)

    mill.start_worker("w2")

    assert sent.get(timeout=60)["text"] == reference("inline", 80)[1]
    assert mill.record(sent.id).attempts == 2


def test_a_worker_that_gets_sigterm_while_it_loads_ends_at_once(mill: Mill) -> None:
    worker = mill.launch(stub={"load_time_s": 60})
    mill.wait_for(mill.store.list_workers, "its first heartbeat")

    assert worker.end(signal.SIGTERM, timeout_s=45) == 0

    assert mill.store.list_workers() == []


def test_tokens_of_another_identity_are_not_continued(mill: Mill) -> None:
    worker = mill.start_worker(stub=SLOW)
    job_id = mill.submit(max_tokens=60)
    mill.wait_tokens(job_id, 10)
    worker.end(signal.SIGTERM)

    mill.start_worker("w2", stub={"identity": "other"})

    (record,) = mill.wait_ended(job_id)
    computed = mill.computed(job_id)
    assert computed[-60:] == list(range(60))
    assert stored_result(record)["metrics"]["resumed_tokens"] == 0


def test_an_engine_that_cannot_start_ends_the_worker_with_an_error(mill: Mill) -> None:
    process = mill.launch(stub={"num_blocks": 8, "no_such_option": 1})
    assert process.process.wait(60) == 8
    assert "engine_cannot_start" in process.log
