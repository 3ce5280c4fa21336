"""Fair share: a small window of jobs is announced, chosen by the tokens that tenants use."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import HeldJob, ReleaseCause
from batchmill.producer.store.tenants import set_tenant, set_window

QUEUE = keys.queue_name("demo", "normal")
WINDOW = keys.DEFAULT_WINDOW_JOBS


def submit_many(bench: Any, tenant: str, number: int, **changes: Any) -> list[str]:
    """Submit jobs named after their tenant."""
    names = [f"{tenant}{index}" for index in range(number)]
    for name in names:
        bench.submit(name, tenant=tenant, **{"cost": 100} | changes)
    return names


def run_all(bench: Any, num_tokens: int = 100, num_running: int = 1) -> list[str]:
    """Run all jobs, a few at a time; return the order in which they started."""
    order, running = [], deque[str]()
    while True:
        name = bench.take_next()
        if name is not None:
            order.append(name)
            running.append(name)
        if name is None or len(running) > num_running:
            if not running:
                return order
            bench.end(running.popleft(), num_tokens)


def test_only_a_window_of_the_jobs_is_announced(bench: Any) -> None:
    names = submit_many(bench, "a", 20)
    assert bench.announced() == names[:WINDOW]
    [depth] = bench.store.queue_depths()
    assert (depth.queued, depth.announcements) == (20, WINDOW)


def test_each_claim_announces_the_next(bench: Any) -> None:
    names = submit_many(bench, "a", 12)
    assert bench.take_next() == "a0"
    assert bench.announced() == names[1 : WINDOW + 1]


def test_one_tenant_s_jobs_keep_their_order(bench: Any) -> None:
    names = submit_many(bench, "a", 30)
    assert run_all(bench) == names


def test_a_single_job_waits_for_no_more_than_the_window(bench: Any) -> None:
    submit_many(bench, "a", 100)
    for _ in range(10):
        bench.take_next()
    bench.submit("b0", tenant="b", cost=100)
    taken = [bench.take_next() for _ in range(WINDOW + 1)]
    assert taken[-1] == "b0"


def test_the_default_tenant_is_treated_like_any_other(bench: Any) -> None:
    for number in range(20):
        bench.submit(f"plain{number}")
    bench.submit("b0", tenant="b")
    assert run_all(bench).index("b0") <= WINDOW


def test_two_tenants_share_by_tokens_not_by_jobs(bench: Any) -> None:
    submit_many(bench, "small", 60, cost=100)
    submit_many(bench, "large", 60, cost=300)
    order = run_all(bench, num_tokens=0)[WINDOW : WINDOW + 40]
    # The real use is 0 here, so only the charges of announced and running jobs decide.
    assert Counter(name.rstrip("0123456789") for name in order)["small"] > 20


def test_weights_give_shares_of_the_tokens(bench: Any) -> None:
    set_window(bench.store, 1)
    set_tenant(bench.store, "heavy", {"weight": 3})
    submit_many(bench, "heavy", 90)
    submit_many(bench, "light", 90)
    order = run_all(bench, num_running=4)[:80]
    shares = Counter(name.rstrip("0123456789") for name in order)
    assert 58 <= shares["heavy"] <= 62


def test_the_real_tokens_count_in_the_end(bench: Any) -> None:
    set_window(bench.store, 1)
    submit_many(bench, "boaster", 60, cost=1000)  # asks for more but uses the same
    submit_many(bench, "modest", 60, cost=100)
    order = run_all(bench, num_tokens=100, num_running=0)[:60]
    assert 25 <= Counter(name.rstrip("0123456789") for name in order)["boaster"] <= 35


def test_overestimates_in_flight_do_not_delay_a_new_tenant(bench: Any) -> None:
    submit_many(bench, "a", 60, cost=100_000)
    for _ in range(30):
        bench.take_next()
    bench.submit("b0", tenant="b", cost=10)
    for _ in range(WINDOW + 1):
        bench.take_next()
    for index in range(30):
        bench.end(f"a{index}", 10)
    bench.end("b0", 10)
    bench.submit("b1", tenant="b", cost=10)
    assert bench.store.queue_position("b1") <= WINDOW
    assert [bench.take_next() for _ in range(WINDOW + 1)][-1] == "b1"


def test_an_idle_tenant_saves_up_nothing(bench: Any) -> None:
    set_window(bench.store, 1)
    submit_many(bench, "early", 10)
    submit_many(bench, "busy", 80)
    for _ in range(50):
        bench.end(bench.take_next(), 100)
    late = [f"late{index}" for index in range(30)]
    for name in late:
        bench.submit(name, tenant="early", cost=100)
    order = run_all(bench, num_running=0)[:20]
    assert 8 <= len(set(order) & set(late)) <= 12


def test_jobs_given_back_go_before_all_others(bench: Any) -> None:
    submit_many(bench, "a", 20)
    taken = [bench.take_next() for _ in range(3)]
    claims = [HeldJob(job_id, bench.fence(job_id)) for job_id in taken]
    bench.store.release(claims, cause=ReleaseCause.DRAIN)
    assert bench.announced()[:3] == ["a2", "a1", "a0"]
    assert len(run_all(bench)) == 20


def test_cancelling_an_announced_job_withdraws_its_message(bench: Any) -> None:
    names = submit_many(bench, "a", 20)
    bench.store.cancel("a3")
    assert bench.announced() == [*names[:3], *names[4 : WINDOW + 1]]


def test_a_cancelled_waiting_job_is_never_announced(bench: Any) -> None:
    submit_many(bench, "a", 10)
    bench.store.cancel("a9")
    assert "a9" not in run_all(bench)


def test_a_tenant_whose_waiting_jobs_are_all_cancelled_is_skipped(bench: Any) -> None:
    submit_many(bench, "a", WINDOW)
    submit_many(bench, "b", 2)
    submit_many(bench, "c", 1)
    for name in ("b0", "b1"):
        bench.store.cancel(name)
    assert [bench.take_next() for _ in range(WINDOW + 1)][-1] == "c0"


def test_an_unusable_message_still_lets_the_next_job_in(bench: Any) -> None:
    names = submit_many(bench, "a", WINDOW + 2)
    bench.redis.hset(keys.job("a0"), "v", 99)
    bench.take_announcement()
    bench.store.claim("a0", owner="w", lease_ms=1000, identity="m")
    assert bench.announced() == names[1 : WINDOW + 1]


def test_a_sweep_refills_the_window_after_messages_vanished(bench: Any) -> None:
    submit_many(bench, "a", 20)
    bench.redis.delete(keys.announced(QUEUE))
    bench.store.sweep(reannounce_grace_ms=60_000)
    assert bench.announced() == [f"a{index}" for index in range(WINDOW, 2 * WINDOW)]
    bench.age_announcements()
    assert bench.store.sweep().reannounced == WINDOW


def test_each_class_has_its_own_window(bench: Any) -> None:
    high = keys.queue_name("demo", "high")
    submit_many(bench, "a", 20)
    bench.submit("urgent", tenant="a", queue=high)
    assert bench.redis.llen(keys.announced(high)) == 1


@pytest.mark.parametrize("place", [0, 3, 8, 19])
def test_the_position_of_a_lone_tenant_s_job_is_exact(bench: Any, place: int) -> None:
    submit_many(bench, "a", 20)
    assert bench.store.queue_position(f"a{place}") == place


def test_the_position_counts_jobs_of_other_tenants(bench: Any) -> None:
    submit_many(bench, "a", 50)
    submit_many(bench, "b", 10)
    assert bench.store.queue_position("b0") == WINDOW
    assert bench.store.queue_position("b9") == WINDOW + 9 + 9
    set_tenant(bench.store, "a", {"weight": 3})
    assert bench.store.queue_position("b9") == WINDOW + 9 + 27


@pytest.mark.parametrize("num_tenants", [20, 1200])
def test_the_position_counts_the_tenants_whose_turn_comes_before(
    bench: Any, num_tenants: int
) -> None:
    """Each tenant has one job: they are announced one after the other."""
    jobs = [bench.new_job(f"j{n:04}", tenant=f"t{n:04}") for n in range(num_tenants)]
    bench.store.run_all([job_calls.submit(job) for job in jobs])
    for place in (WINDOW, num_tenants // 2, num_tenants - 1):
        assert bench.store.queue_position(f"j{place:04}") == place


def test_a_job_that_does_not_wait_has_no_position(bench: Any) -> None:
    bench.started("running")
    bench.submit("later", delay_ms=60_000)
    assert bench.store.queue_position("running") is None
    assert bench.store.queue_position("later") is None
    assert bench.store.queue_position("unknown") is None
