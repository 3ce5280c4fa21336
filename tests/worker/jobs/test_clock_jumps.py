"""Workers on a Redis whose clock jumps, and what they say about it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer.protocol.replies import JobState
from batchmill.worker.jobs.clock_watch import ClockReading, measure_jump_s

from ...conftest import RedisServer
from ...support.fake_clock import FakeClock
from ..conftest import Mill

HOUR_S = 3600


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    return FakeClock(tmp_path)


@pytest.fixture
def timed_mill(clock: FakeClock, tmp_path: Path) -> Iterator[Mill]:
    """A mill on a server whose clock the test moves."""
    server = RedisServer()
    server.environment = clock.environment
    server.start()
    mill = Mill(server.url, tmp_path)
    yield mill
    mill.close()
    server.close()


def test_jobs_survive_clock_jumps_and_a_frozen_worker_is_replaced_as_soon_as_ever(
    timed_mill: Mill, clock: FakeClock
) -> None:
    mill, redis = timed_mill, timed_mill.store.client
    frozen = mill.start_worker("w1", stub={"step_time_s": 0.02})
    job_id = mill.submit(max_tokens=3000)  # a minute on this worker, and a moment on the other
    mill.wait_tokens(job_id, 8)
    clock.step(redis, HOUR_S)
    mill.wait_for(lambda: "redis_clock_put_forward" in frozen.log, "the warning")
    mill.wait_tokens(job_id, 80)
    record = mill.record(job_id)
    assert (record.attempts, record.state) == (1, JobState.IN_PROGRESS)

    other = mill.start_worker("w2", stub={"step_time_s": 0.0})
    clock.step(redis, -HOUR_S)
    mill.wait_for(lambda: "redis_clock_put_back" in frozen.log + other.log, "the warning")
    frozen.send(signal.SIGSTOP)
    (record,) = mill.wait_ended(job_id)
    frozen.send(signal.SIGCONT)
    assert (record.state, record.owner) == (JobState.COMPLETED, "w2@test")
    assert (record.suspect, record.crashes) == (0, 0)
    [line] = [line for line in frozen.log.splitlines() if "redis_clock_put_forward" in line]
    assert json.loads(line)["by_s"] == pytest.approx(HOUR_S, abs=5)


def reading(redis_s: float, sent_at: float, received_at: float) -> ClockReading:
    return ClockReading(redis_s, sent_at, received_at)


@pytest.mark.parametrize(
    ("after", "jump_s"),
    [
        (reading(102.0, 12.0, 12.1), 0.0),
        (reading(90.0, 12.0, 12.1), -11.9),
        (reading(162.0, 12.0, 12.1), 59.9),
        # The call took half a minute, and Redis may have replied at any moment of it.
        (reading(130.0, 12.0, 42.0), 0.0),
        (reading(103.0, 12.0, 42.0), 0.0),
        (reading(140.0, 12.0, 42.0), 8.0),
        (reading(99.0, 12.0, 42.0), -2.9),
    ],
)
def test_only_a_difference_that_no_delay_explains_is_a_jump(
    after: ClockReading, jump_s: float
) -> None:
    assert measure_jump_s(reading(100.0, 10.0, 10.1), after) == pytest.approx(jump_s)
