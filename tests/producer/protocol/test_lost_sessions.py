"""Jobs of a worker whose process is gone go back at once; a worker that lives keeps its jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import celery_tasks
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry
from batchmill.producer.protocol.replies import (
    EndTaken,
    HeldJob,
    JobState,
    WriteStatus,
)
from batchmill.producer.protocol.sweep_counts import LostSessions

from ...support.session_connections import SessionConnections
from ...support.worker_info import worker_info

QUEUE = keys.queue_name("demo", "normal")
NOTHING = LostSessions(num_jobs=0, num_reannounced=0, sessions=())
#: Longer than any caller must have been connected.
LONG_MS = 60_000
WORKER = worker_info("w1@host", session=keys.new_session("w1@host"))
LOST = WORKER.session
OBSERVER = keys.new_session("w2@host")


class Sessions(SessionConnections):
    """The sessions of two workers, one of which may judge the other."""

    def __init__(self, bench: Any) -> None:
        super().__init__(bench.redis)
        self.bench = bench

    def judge(self, *, connected_ms: int = LONG_MS, limit: int = 500) -> LostSessions:
        reply: LostSessions = self.bench.store.end_lost_sessions(
            OBSERVER, connected_ms=connected_ms, limit=limit
        )
        return reply

    def claim(self, job_id: str) -> Any:
        """Submit a job, and claim it as the worker that will be lost."""
        self.bench.submit(job_id)
        self.bench.take_announcement()
        return self.bench.store.claim(
            job_id, owner=WORKER.name, lease_ms=600_000, identity="m", session=LOST
        )


@pytest.fixture
def sessions(bench: Any) -> Iterator[Sessions]:
    """The observer is connected; the other worker has sent its last heartbeat and is connected."""
    sessions = Sessions(bench)
    sessions.connect(OBSERVER)
    sessions.connect(LOST)
    bench.store.announce_worker(WORKER, timeout_ms=0)
    yield sessions
    sessions.close()


def test_jobs_of_a_lost_worker_go_back_before_their_leases_end(
    bench: Any, sessions: Sessions
) -> None:
    claim = sessions.claim("j")
    bench.started("other")
    sessions.disconnect(LOST)

    assert sessions.judge() == LostSessions(num_jobs=1, num_reannounced=0, sessions=(LOST,))

    record = bench.store.load("j")
    assert (record.state, record.owner, record.suspect) == (JobState.QUEUED, None, 0)
    assert bench.state("other") == "in_progress"
    assert bench.redis.zscore(keys.LEASES, "j") is None
    # If the worker was only cut off, it finds that the job is no longer its own.
    held = HeldJob("j", claim.fence)
    assert bench.store.renew([held], lease_ms=1000) == [WriteStatus.FENCED]
    assert bench.store.list_workers() == []
    assert sessions.judge() == NOTHING


def test_a_silent_worker_that_is_connected_keeps_its_jobs(bench: Any, sessions: Sessions) -> None:
    sessions.claim("j")
    assert sessions.judge() == NOTHING
    assert bench.state("j") == "in_progress"


def test_a_worker_without_a_connection_that_sends_heartbeats_keeps_its_jobs(
    bench: Any, sessions: Sessions
) -> None:
    sessions.claim("j")
    sessions.disconnect(LOST)
    assert bench.store.announce_worker(WORKER, timeout_ms=60_000) == 0
    assert sessions.judge() == NOTHING
    assert bench.state("j") == "in_progress"


def test_a_worker_that_never_had_a_connection_is_left_to_its_leases(
    bench: Any, sessions: Sessions
) -> None:
    """A proxy, or the rules of the user, may not allow it to subscribe."""
    session = keys.new_session("w3@host")
    bench.submit("j")
    bench.store.claim("j", owner="w3@host", lease_ms=600_000, identity="m", session=session)
    bench.store.announce_worker(replace(WORKER, name="w3@host", session=session), timeout_ms=0)
    assert sessions.judge() == NOTHING
    assert bench.state("j") == "in_progress"


def test_a_caller_that_connected_lately_may_not_judge(bench: Any, sessions: Sessions) -> None:
    """Redis may have restarted, and the others may be about to connect again."""
    sessions.claim("j")
    sessions.disconnect(LOST)
    assert sessions.judge(connected_ms=4999) == NOTHING
    assert bench.state("j") == "in_progress"
    assert sessions.judge(connected_ms=5000).num_jobs == 1


def test_a_caller_whose_connection_this_server_does_not_see_may_not_judge(
    bench: Any, sessions: Sessions
) -> None:
    """After a failover, its connection may still lead to the old primary."""
    sessions.claim("j")
    sessions.disconnect(LOST)
    sessions.disconnect(OBSERVER)
    assert sessions.judge() == NOTHING
    assert bench.state("j") == "in_progress"


def test_a_message_that_a_lost_worker_had_taken_is_announced_again(
    bench: Any, sessions: Sessions
) -> None:
    bench.submit("j")
    bench.take_announcement()
    bench.age_announcement("j")
    sessions.disconnect(LOST)
    assert sessions.judge().num_reannounced == 1
    assert bench.take_next() == "j"


def test_a_message_that_a_frozen_worker_has_taken_is_announced_again(
    bench: Any, sessions: Sessions
) -> None:
    bench.submit("j")
    bench.take_announcement()
    bench.age_announcement("j")
    assert sessions.judge() == LostSessions(num_jobs=0, num_reannounced=1, sessions=())
    assert bench.take_next() == "j"


def test_a_call_puts_back_a_bounded_number_of_jobs(bench: Any, sessions: Sessions) -> None:
    for number in range(3):
        sessions.claim(f"j{number}")
    sessions.disconnect(LOST)
    assert sessions.judge(limit=2) == LostSessions(num_jobs=2, num_reannounced=0, sessions=())
    assert sessions.judge(limit=2) == LostSessions(num_jobs=1, num_reannounced=0, sessions=(LOST,))


def test_a_new_run_under_the_same_name_keeps_its_heartbeat(bench: Any, sessions: Sessions) -> None:
    sessions.claim("j")
    sessions.disconnect(LOST)
    again = replace(WORKER, session=keys.new_session(WORKER.name))
    bench.store.announce_worker(again, timeout_ms=60_000)
    assert sessions.judge().sessions == (LOST,)
    assert bench.state("j") == "queued"
    assert bench.store.list_workers() == [again]


def test_a_worker_that_ends_with_jobs_left_is_lost_at_once(bench: Any, sessions: Sessions) -> None:
    bench.store.announce_worker(WORKER, timeout_ms=60_000)
    sessions.claim("j")
    bench.store.forget_worker(WORKER.name, LOST)
    sessions.disconnect(LOST)
    assert sessions.judge().num_jobs == 1


def test_forged_entries_stop_nothing(bench: Any, sessions: Sessions) -> None:
    sessions.claim("j")
    bench.redis.set(keys.job("text"), "x")
    bench.redis.zadd(keys.LEASES, {"text": 9e15, "none": 9e15})
    bench.redis.zadd(keys.SESSIONS, {b"\xff\xfe": 1, "no dot": 1, "w1@host.12": 1})
    bench.redis.set(keys.worker("w1@host"), "{no json")
    sessions.disconnect(LOST)
    assert sessions.judge().num_jobs == 1
    assert bench.state("j") == "queued"
    assert bench.redis.zcard(keys.SESSIONS) == 0
    bench.redis.delete(keys.job("text"), keys.worker("w1@host"))
    bench.redis.zrem(keys.LEASES, "text", "none")


class Takings:
    """A document, a plain task and an event, each of which a session may take."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench
        bench.redis.lpush(keys.INBOX, b'{"prompt": "x"}')
        bench.redis.lpush(QUEUE, b'{"task": "x"}')
        bench.submit("j", webhook="https://example.com/hook")
        bench.store.cancel("j")

    def take(self, session: str) -> tuple[Any, Any, Any]:
        """Take what is due, as a session that may judge others."""
        run: Any = self._bench.store.run
        limits: dict[str, Any] = {"session": session, "connected_ms": LONG_MS}
        documents = run(inbox_calls.take(600_000, **limits))
        tasks = run(celery_tasks.take([QUEUE], lease_ms=600_000, **limits))
        events: list[OutboxEntry] = self._bench.store.outbox_claim(
            owner="d", limit=9, lease_ms=600_000, session=session
        )
        return documents, tasks, events

    def settle(self, document: Any, task: Any, event: Any) -> None:
        self._bench.store.run(inbox_calls.settle(document.id))
        self._bench.store.run(celery_tasks.drop(task.taken_id))
        self._bench.store.outbox_settle(
            event.event_id, fence=event.fence, outcome=DeliveryOutcome.DELIVERED
        )


def test_what_a_lost_session_had_taken_is_handed_out_before_the_leases_end(
    bench: Any, sessions: Sessions
) -> None:
    takings = Takings(bench)
    ((document,), (task,), (event,)) = takings.take(LOST)
    sessions.disconnect(LOST)
    assert takings.take(OBSERVER) == ([], [], [])

    lost = sessions.judge()

    assert (lost.num_jobs, lost.num_released, lost.sessions) == (0, 3, (LOST,))
    ((document_again,), (task_again,), (event_again,)) = takings.take(OBSERVER)
    assert (document_again.id, task_again.taken_id) == (document.id, task.taken_id)
    assert task_again.num_lost == 1
    assert (event_again.event_id, event_again.attempt) == (event.event_id, 2)
    # If it was only cut off, it learns that it no longer holds the event.
    settled = bench.store.outbox_settle(
        event.event_id, fence=event.fence, outcome=DeliveryOutcome.DELIVERED
    )
    assert settled is WriteStatus.FENCED
    assert sessions.judge() == NOTHING
    takings.settle(document_again, task_again, event_again)
    assert not bench.redis.exists(keys.OUTBOX_TAKERS, keys.INBOX_TAKERS, keys.TASKS_TAKEN)


def test_ends_that_a_lost_session_reports_to_celery_are_handed_out_at_once(
    bench: Any, sessions: Sessions
) -> None:
    other = keys.new_session("w3@host")
    sessions.connect(other)
    store, take = bench.store, partial(bench.store.take_celery_end, lease_ms=600_000)
    for job_id in ("alone", "swept", "other", "reported"):
        store.adopt(replace(bench.new_job(job_id), celery_result=True))
        store.cancel(job_id)
    assert take("alone", session=LOST) is take("reported", session=LOST) is EndTaken.TAKEN
    assert take("other", session=other) is EndTaken.TAKEN
    sweep = partial(store.take_celery_ends, limit=9, lease_ms=600_000)
    assert sweep(grace_ms=0, session=LOST) == ["swept"]
    store.drop_celery_end("reported")
    sessions.disconnect(LOST)
    assert sweep(grace_ms=0, session=OBSERVER) == []

    lost = sessions.judge()

    assert (lost.num_released, lost.sessions) == (2, (LOST,))
    # The time in which a worker that has ended a job reports it by itself is over.
    assert sorted(sweep(grace_ms=2_000, session=OBSERVER)) == ["alone", "swept"]
    assert take("alone", session=OBSERVER) is EndTaken.HELD
    for job_id in ("alone", "swept", "other"):
        store.drop_celery_end(job_id)
    assert not bench.redis.exists(keys.CELERY_ENDS, keys.CELERY_END_TAKERS)


def test_what_others_have_taken_stays_with_them(bench: Any, sessions: Sessions) -> None:
    takings = Takings(bench)
    other = keys.new_session("w3@host")
    sessions.connect(other)
    ((document,), (task,), (event,)) = takings.take(other)
    sessions.disconnect(LOST)

    assert sessions.judge().num_released == 0

    assert takings.take(OBSERVER) == ([], [], [])
    takings.settle(document, task, event)


def test_what_a_silent_session_has_taken_stays_with_it_while_it_is_connected(
    bench: Any, sessions: Sessions
) -> None:
    takings = Takings(bench)
    ((document,), (task,), (event,)) = takings.take(LOST)
    assert sessions.judge() == NOTHING
    assert takings.take(OBSERVER) == ([], [], [])
    takings.settle(document, task, event)


def test_an_event_that_a_deliverer_settles_or_loses_is_no_longer_its_own(
    bench: Any, sessions: Sessions
) -> None:
    takings = Takings(bench)
    ((document,), (task,), (event,)) = takings.take(LOST)
    bench.store.outbox_settle(
        event.event_id, fence=event.fence, outcome=DeliveryOutcome.RETRY, retry_in_ms=0
    )
    (again,) = bench.store.outbox_claim(owner="old", limit=9, lease_ms=600_000)
    sessions.disconnect(LOST)

    sessions.judge()

    assert bench.store.outbox_claim(owner="d", limit=9, lease_ms=600_000) == []
    takings.settle(document, task, again)


def test_a_session_without_a_heartbeat_of_a_worker_is_lost_too(
    bench: Any, sessions: Sessions
) -> None:
    deliverer = keys.new_session("deliverer")
    assert bench.store.note_session(deliverer, timeout_ms=0) == 0
    sessions.connect(deliverer)
    assert bench.store.note_session(deliverer, timeout_ms=0) == 1
    takings = Takings(bench)
    takings.take(deliverer)
    sessions.disconnect(deliverer)

    lost = sessions.judge()

    assert (lost.sessions, lost.num_released) == ((deliverer,), 3)
    assert [worker.name for worker in bench.store.list_workers()] == [WORKER.name]
    takings.settle(*(taken for (taken,) in takings.take(OBSERVER)))


def test_forged_takings_stop_nothing(bench: Any, sessions: Sessions) -> None:
    sessions.claim("job")
    takings = Takings(bench)
    takings.take(LOST)
    bench.redis.hset(keys.INBOX_TAKERS, "forged", "no number")
    bench.redis.zadd(keys.INBOX_TAKEN, {"forged": 9e15})
    bench.redis.zadd(keys.TASKS_TAKEN, {"forged": 9e15})
    bench.redis.set(keys.taken_task("forged"), "x")
    for takers in (keys.OUTBOX_TAKERS, keys.CELERY_END_TAKERS):
        bench.redis.hset(takers, mapping={"none": LOST, b"\xff": b"\xfe"})
    sessions.disconnect(LOST)

    lost = sessions.judge()

    assert (lost.num_jobs, lost.sessions) == (1, (LOST,))
    documents, tasks, events = takings.take(OBSERVER)
    assert [len(documents), len(tasks), len(events)] == [1, 1, 1]
    bench.redis.flushall()


@pytest.mark.parametrize(
    "key",
    [keys.INBOX_TAKEN, keys.TASKS_TAKEN, keys.OUTBOX_TAKERS, keys.CELERY_END_TAKERS],
)
def test_a_key_of_another_type_keeps_no_job_with_a_lost_worker(
    bench: Any, sessions: Sessions, key: str
) -> None:
    sessions.claim("job")
    bench.redis.set(key, "x")
    sessions.disconnect(LOST)
    assert sessions.judge().num_jobs == 1
    bench.redis.delete(key)
