"""The engine runs no further ahead of what is saved than a checkpoint interval and a step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ..conftest import Mill, stored_result

CHECKPOINT_TOKENS = 8
SETTINGS: dict[str, Any] = {"lease_s": 600, "stub": {"step_time_s": 0.005}}
NUM_TOKENS = 1500
#: Far more than the engine may compute without a checkpoint, and far less than a job.
FAR_AHEAD = 100
#: Seconds without a computed token, after which an engine counts as waiting.
_STILL_S = 1.0


def submit_running(mill: Mill) -> list[str]:
    job_ids = [mill.submit(f"prompt {n}", max_tokens=NUM_TOKENS) for n in range(4)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)
    return job_ids


def wait_until_engine_waits(mill: Mill, job_ids: list[str]) -> None:
    """Wait until the engine computes nothing more, or has run far ahead."""
    start = num_before = num_computed(mill, job_ids)
    changed_at = time.monotonic()

    def is_still() -> bool:
        nonlocal num_before, changed_at
        num = num_computed(mill, job_ids)
        if num != num_before:
            num_before, changed_at = num, time.monotonic()
        is_far_ahead = num - start > len(job_ids) * FAR_AHEAD
        return is_far_ahead or time.monotonic() - changed_at > _STILL_S

    mill.wait_for(is_still, "the engine to wait")


def num_computed(mill: Mill, job_ids: list[str]) -> int:
    return sum(len(mill.computed(job_id)) for job_id in job_ids)


def check_ends(mill: Mill, job_ids: list[str], reference: Callable[..., Any]) -> None:
    """Check the output of the jobs, and that another worker computed few tokens again."""
    for number, record in enumerate(mill.wait_ended(*job_ids, timeout_s=60)):
        assert stored_result(record)["text"] == reference(f"prompt {number}", NUM_TOKENS)[1]
        assert record.attempts == 2
        computed = mill.computed(record.id)
        assert len(computed) - len(set(computed)) <= CHECKPOINT_TOKENS + 1


def test_a_worker_that_is_killed_after_its_main_process_stood_still_loses_a_checkpoint_interval(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(**SETTINGS)
    job_ids = submit_running(mill)

    worker.send(signal.SIGSTOP)  # not the engine
    wait_until_engine_waits(mill, job_ids)
    worker.end(signal.SIGKILL)

    mill.start_worker("w2", **SETTINGS)
    check_ends(mill, job_ids, reference)


@pytest.mark.nightly
def test_a_worker_that_is_killed_while_redis_is_slow_loses_a_checkpoint_interval(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(**SETTINGS)
    job_ids = submit_running(mill)

    mill.store.client.client_pause(1500, all=False)  # not yet an outage
    wait_until_engine_waits(mill, job_ids)
    worker.end(signal.SIGKILL)

    mill.start_worker("w2", **SETTINGS)
    check_ends(mill, job_ids, reference)


def test_generation_continues_while_redis_does_not_reply(
    private_mill: Mill, private_redis_server: RedisServer, reference: Callable[..., Any]
) -> None:
    mill = private_mill
    mill.start_worker(**SETTINGS)
    job_ids = submit_running(mill)

    before = {job_id: len(mill.store.read_tokens(job_id)) for job_id in job_ids}
    server = private_redis_server.process
    assert server is not None
    server.send_signal(signal.SIGSTOP)
    mill.wait_for(
        lambda: all(len(mill.computed(job_id)) > num + FAR_AHEAD for job_id, num in before.items()),
        "the engine to run ahead",
    )
    server.send_signal(signal.SIGCONT)

    for number, record in enumerate(mill.wait_ended(*job_ids, timeout_s=60)):
        assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
        assert stored_result(record)["text"] == reference(f"prompt {number}", NUM_TOKENS)[1]
        assert mill.computed(record.id) == list(range(NUM_TOKENS))
