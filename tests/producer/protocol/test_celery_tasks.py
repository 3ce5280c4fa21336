"""Plain Celery tasks between queue and record: taken under a lease, never only popped."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import celery_tasks
from batchmill.producer.protocol.calls.celery_tasks import TakenTask
from batchmill.producer.protocol.replies import Claim, ClaimRefusal, JobState

LISTS = ["batchmill.demo.high", "batchmill.demo.normal"]


@pytest.fixture(autouse=True)
def tidy(bench: Any) -> Any:
    """Remove what a worker would have moved on, before the check of keys that are left."""
    yield
    bench.redis.delete(keys.TASKS_TAKEN, keys.announced(LISTS[0]), *map(keys.arrived, LISTS))
    for key in bench.redis.scan_iter(match=keys.taken_task("*")):
        bench.redis.delete(key)


def take(bench: Any, lease_ms: int = 60_000, **caller: Any) -> list[TakenTask]:
    taken: list[TakenTask] = bench.store.run(celery_tasks.take(LISTS, lease_ms=lease_ms, **caller))
    return taken


def elements(taken: list[TakenTask]) -> list[bytes]:
    return [task.element for task in taken]


def test_tasks_are_taken_in_the_order_of_their_lists_and_of_their_arrival(bench: Any) -> None:
    bench.redis.lpush(LISTS[1], "n1", "n2")
    bench.redis.lpush(LISTS[0], "h1")
    bench.redis.lpush(keys.arrived(LISTS[1]), "woke a worker")

    taken = [(task.source, task.element) for task in take(bench)]

    assert [element for _, element in taken] == [b"h1", b"woke a worker", b"n1", b"n2"]
    assert [source for source, _ in taken] == [LISTS[0], *LISTS[1:] * 3]
    assert take(bench) == []


def test_a_task_of_a_worker_that_died_is_handed_out_again(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "task")
    (first,) = take(bench, lease_ms=0, session="a.1")
    (second,) = take(bench, session="b.1", connected_ms=10_000)

    assert (first.num_lost, second.num_lost) == (0, 1)
    assert (first.taken_id, first.element) == (second.taken_id, second.element)
    assert take(bench) == []


def test_no_worker_is_counted_for_a_reply_that_was_lost(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], *map(str, range(32)))
    with bench.redis.pubsub() as connection:
        connection.subscribe(keys.session_channel("a.1"))
        for session in ("a.1", "a.1", "b.1", "a.1", "b.1"):
            connection.subscribe(keys.session_channel(session))
            lost = take(bench, lease_ms=0, session=session, connected_ms=10_000)
            assert len(lost) == 32
        assert {task.num_lost for task in lost} == {0}


def test_a_task_is_handed_out_alone_after_a_worker_was_lost_with_it(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "deadly", "second")
    assert len(take(bench, lease_ms=0, session="a.1")) == 2
    bench.redis.lpush(LISTS[0], "new")
    caller: dict[str, Any] = {"session": "b.1", "connected_ms": 10_000}

    taken = [take(bench, **caller) for _ in range(4)]

    assert sorted(map(elements, taken)) == [[], [b"deadly"], [b"new"], [b"second"]]


def test_a_worker_that_connected_lately_leaves_a_task_to_others(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "task")
    take(bench, lease_ms=0, session="a.1")
    assert take(bench, session="b.1", connected_ms=4000) == []
    (task,) = take(bench, session="c.1", connected_ms=10_000)
    assert task.num_lost == 1


def test_a_worker_that_lost_its_lease_cannot_put_a_task_off(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "task")
    (late,) = take(bench, lease_ms=0)
    (held,) = take(bench)
    bench.store.run(celery_tasks.put_off(late, 0))
    assert take(bench) == []
    assert bench.redis.zscore(keys.TASKS_TAKEN, held.taken_id) == held.held_until_ms


def test_a_repeated_call_hands_out_the_same_tasks(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "one", "two")
    call = celery_tasks.take(LISTS, lease_ms=60_000)

    first, second = bench.store.run(call), bench.store.run(call)

    assert [task.element for task in first] == [task.element for task in second] == [b"one", b"two"]


def test_a_settled_task_leaves_nothing(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "task")
    (task,) = take(bench)
    for _ in range(2):
        bench.store.run(celery_tasks.drop(task.taken_id))
    assert bench.redis.keys("*") == []


def test_a_task_that_is_put_off_comes_again_and_is_not_counted(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "task")
    (task,) = take(bench, session="a.1")
    bench.store.run(celery_tasks.put_off(task, 0))
    (again,) = take(bench, session="b.1", connected_ms=10_000)
    assert again.num_lost == 0


def test_a_message_that_names_a_stored_job_becomes_an_announcement(bench: Any) -> None:
    bench.redis.lpush(LISTS[0], "message")
    (task,) = take(bench)
    for _ in range(2):
        bench.store.run(celery_tasks.announce(task.taken_id, LISTS[0], "checked message"))
    assert bench.redis.lrange(keys.announced(LISTS[0]), 0, -1) == [b"checked message"]


def test_keys_of_another_type_stop_no_other_task(bench: Any) -> None:
    bench.redis.set(LISTS[0], "not a list")
    bench.redis.set(keys.arrived(LISTS[1]), "not a list")
    bench.redis.zadd(keys.TASKS_TAKEN, {"forged": 1, "gone": 1})
    bench.redis.set(keys.taken_task("forged"), "not a hash")
    bench.redis.lpush(LISTS[1], "task")
    assert [task.element for task in take(bench)] == [b"task"]


def test_tasks_are_taken_even_if_redis_is_full(full_bench: Any) -> None:
    full_bench.redis.lpush(LISTS[0], "task")
    full_bench.redis.config_set("maxmemory", "1")
    (task,) = take(full_bench)
    full_bench.store.run(celery_tasks.drop(task.taken_id))


@pytest.fixture
def full_bench(bench: Any) -> Any:
    yield bench
    bench.redis.config_set("maxmemory", "0")


def test_a_task_that_did_not_start_in_time_expires(bench: Any) -> None:
    bench.store.adopt(bench.new_job("late", start_by_ms=1))
    bench.store.adopt(bench.new_job("swept", start_by_ms=1))
    reply = bench.store.claim("late", owner="w", lease_ms=1000, identity="m")
    bench.store.sweep()
    assert reply is ClaimRefusal.EXPIRED
    assert {bench.state("late"), bench.state("swept")} == {"expired"}
    assert b"expired before it started" in bench.store.load("swept").error


def test_a_task_that_started_in_time_does_not_expire(bench: Any) -> None:
    bench.store.adopt(bench.new_job("j", start_by_ms=10**15))
    bench.claim("j")
    assert bench.redis.hget(keys.job("j"), "start_by_ms") is None
    bench.lose_lease("j")
    bench.store.sweep()
    assert isinstance(bench.claim("j"), Claim)
    assert bench.store.state("j") is JobState.IN_PROGRESS


def test_tasks_of_a_lower_celery_priority_wait_behind_the_others(bench: Any) -> None:
    bench.redis.set(keys.WINDOW, 0)
    for name, priority in (("last", 9), ("second", 3), ("first", 0)):
        bench.store.adopt(bench.new_job(name, message_priority=priority))
    bench.redis.delete(keys.WINDOW)
    bench.store.sweep()
    assert [bench.take_next() for _ in range(3)] == ["first", "second", "last"]


def test_a_task_is_sent_once_and_a_refused_one_may_be_sent_again(bench: Any) -> None:
    def send() -> bool:
        sent: bool = bench.store.send_celery_task(
            "shop", "a message", sending="t1:0", ttl_ms=60_000
        )
        return sent

    bench.redis.set("shop", "not a list")
    with pytest.raises(ResponseError):
        send()
    bench.redis.delete("shop")

    assert [send(), send()] == [True, False]
    assert bench.redis.lrange("shop", 0, -1) == [b"a message"]
    assert 0 < bench.redis.pttl("batchmill:tasks:sent:t1:0") <= 60_000
    bench.redis.delete("shop", "batchmill:tasks:sent:t1:0")
