"""The clock of Redis jumps: nothing waits longer for it, and no healthy holder loses its job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import HeldJob, JobState
from batchmill.producer.store.job_store import JobStore

from ...conftest import RedisServer
from ...support.fake_clock import FakeClock
from ..conftest import QUEUE, Bench

SECOND, HOUR, YEAR = 1, 3600, 365 * 24 * 3600


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> FakeClock:
    return FakeClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def server(clock: FakeClock) -> Iterator[RedisServer]:
    """A server whose clock the tests move."""
    server = RedisServer()
    server.environment = clock.environment
    server.start()
    yield server
    server.close()


@pytest.fixture
def timed(server: RedisServer, clock: FakeClock) -> Iterator[Bench]:
    store = JobStore.from_url(server.url)
    clock.set(store.client, 0)
    store.client.flushall()
    yield Bench(store)
    store.close()


def wait_for(happened: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within ten seconds"
        time.sleep(0.02)


def redis_ms(bench: Bench) -> float:
    seconds, micros = bench.redis.time()
    return float(seconds * 1000 + micros / 1000)


def sweep(bench: Bench) -> Any:
    return bench.store.sweep(reannounce_grace_ms=200, sweep_interval_ms=2000, extension_ms=15_000)


def start_lease(bench: Bench) -> Callable[[], Any]:
    bench.started("j", lease_ms=200)
    return lambda: sweep(bench).requeued


def start_delay(bench: Bench) -> Callable[[], Any]:
    bench.submit("j", delay_ms=200)
    return bench.store.announce_due


def start_retry(bench: Bench) -> Callable[[], Any]:
    claim = bench.started("j", webhook="https://example.com/")
    bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    [entry] = bench.store.outbox_claim(owner="d", limit=1, lease_ms=60_000)
    outcome = DeliveryOutcome.RETRY
    bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome, retry_in_ms=200)
    return lambda: bench.store.outbox_claim(owner="d", limit=1, lease_ms=60_000)


def start_deadline(bench: Bench) -> Callable[[], Any]:
    bench.submit("j", ttl_ms=200)
    return lambda: sweep(bench).expired


def lose_announcement(bench: Bench) -> Callable[[], Any]:
    bench.submit("j")
    bench.redis.delete(keys.announced(QUEUE))
    return lambda: sweep(bench).reannounced


def take_document(bench: Bench) -> Callable[[], Any]:
    bench.redis.lpush(keys.INBOX, "{}")
    assert len(bench.store.run(inbox_calls.take(lease_ms=200))) == 1

    def take_again() -> Any:
        bench.store.announce_due()  # as a worker does twice a second
        return bench.store.run(inbox_calls.take(lease_ms=200))

    return take_again


WAITS = {
    "a lease": start_lease,
    "a delay": start_delay,
    "a retry of a webhook": start_retry,
    "a deadline": start_deadline,
    "a lost announcement": lose_announcement,
    "a document of the inbox": take_document,
}


@pytest.mark.parametrize("by_s", [5 * SECOND, HOUR, 40 * YEAR])
@pytest.mark.parametrize("name", WAITS)
def test_nothing_waits_for_a_clock_that_was_put_back(
    timed: Bench, clock: FakeClock, name: str, by_s: int
) -> None:
    sweep(timed)  # as the workers do all the time
    happened = WAITS[name](timed)
    clock.step(timed.redis, -by_s)
    wait_for(happened, name)


def test_time_goes_on_when_the_clock_is_put_back_again_and_again(
    timed: Bench, clock: FakeClock
) -> None:
    times = []
    for number in range(6):
        sweep(timed)
        timed.submit(f"j{number}")
        record = timed.store.load(f"j{number}")
        assert record is not None
        times.append(record.enqueued_at_ms)
        clock.step(timed.redis, -HOUR / (number + 1))
    # By no more than the time since it was noted last, it may go back.
    assert all(later > earlier - 500 for earlier, later in pairwise(times))
    assert times[-1] - times[0] < 60_000


def test_the_time_is_that_of_redis_again_after_a_while(timed: Bench, clock: FakeClock) -> None:
    def now_ms() -> int:
        timed.submit()
        return int(timed.redis.zrevrange(keys.state_index("queued"), 0, 0, withscores=True)[0][1])

    sweep(timed)
    clock.step(timed.redis, -100)
    assert now_ms() - redis_ms(timed) > 95_000
    sweep(timed)
    for _ in range(5):  # 500 seconds pass, 20 % of them more slowly
        before = now_ms()
        clock.step(timed.redis, 100)
        assert 75_000 < now_ms() - before < 105_000
        sweep(timed)
    clock.step(timed.redis, 100)
    assert abs(now_ms() - redis_ms(timed)) < 2000


@pytest.mark.parametrize("by_s", [20 * SECOND, HOUR, 40 * 24 * HOUR])
def test_a_clock_put_forward_takes_no_job_from_a_healthy_holder(
    timed: Bench, clock: FakeClock, by_s: int
) -> None:
    sweep(timed)
    held = HeldJob("j", timed.started("j", lease_ms=15_000).fence)
    clock.step(timed.redis, by_s)
    counts = sweep(timed)
    assert (counts.requeued, counts.extended) == (0, 1)
    assert timed.store.renew([held], lease_ms=15_000) == ["OK"]
    assert sweep(timed).requeued == 0


def test_a_clock_put_forward_delays_the_recovery_of_a_dead_holder_by_a_lease(
    timed: Bench, clock: FakeClock
) -> None:
    sweep(timed)
    timed.started("j", lease_ms=15_000)
    clock.step(timed.redis, HOUR)
    assert sweep(timed).extended == 1
    clock.step(timed.redis, 5)
    sweep(timed)
    clock.step(timed.redis, 5)
    sweep(timed)
    clock.step(timed.redis, 6)
    assert sweep(timed).requeued == 1


@pytest.mark.parametrize("forged", ["text", "9", "-5 9", "1.5 2", "9" * 40 + " 5 6"])
def test_a_clock_that_batchmill_did_not_write_is_replaced(timed: Bench, forged: str) -> None:
    timed.redis.set(keys.CLOCK, forged)
    assert sweep(timed).redis_ms == pytest.approx(redis_ms(timed), abs=5000)
    timed.redis.delete(keys.CLOCK)
    timed.redis.lpush(keys.CLOCK, forged)
    timed.submit("j")
    sweep(timed)
    assert timed.redis.type(keys.CLOCK) == b"string"
