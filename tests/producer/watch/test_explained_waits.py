"""A caller who waits is told why: no worker serves the model, or the place in the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    Client,
    JobProgress,
    JobState,
    ProgressSummary,
    ResultTimeout,
)
from batchmill.producer.progress import unserved
from batchmill.producer.watch import wait_limits

from ..store.test_job_progress import announce_worker


def test_the_error_of_a_wait_names_the_models_that_are_served(bench: Any, client: Client) -> None:
    job = client.submit("hi", model="gpt-4")
    with pytest.raises(ResultTimeout, match="no worker serves gpt-4: no worker runs") as caught:
        job.result(timeout_s=0)
    announce_worker(bench)
    with pytest.raises(ResultTimeout, match="no worker serves gpt-4; served: ") as caught:
        job.result(timeout_s=0)
    assert caught.value.job_id == job.id
    progress = caught.value.progress
    assert isinstance(progress, JobProgress)
    assert (progress.unserved_model, progress.state) == ("gpt-4", JobState.QUEUED)
    assert progress.served_models
    with pytest.raises(ResultTimeout, match="no worker serves gpt-4; served: "):
        list(client.stream(job.id, timeout_s=0.1))
    with pytest.raises(ResultTimeout, match="no worker serves gpt-4; served: ") as caught:
        list(client.as_completed([job.id], timeout_s=0.1))
    assert isinstance(caught.value.progress, ProgressSummary)


def test_the_error_of_a_wait_names_the_place_in_the_queue(bench: Any, client: Client) -> None:
    announce_worker(bench)
    client.submit("first")
    job = client.submit("second")
    with pytest.raises(ResultTimeout, match=r"1 job before it, ETA \d") as caught:
        job.result(timeout_s=0)
    progress = caught.value.progress
    assert isinstance(progress, JobProgress)
    assert progress.queue_position == 1
    assert progress.eta_s is not None


def test_a_callback_is_told_while_the_wait_lasts(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_limits, "REPORT_INTERVAL_S", 0.1)
    job = client.submit("hi", model="gpt-4")
    told: list[JobProgress] = []
    with pytest.raises(ResultTimeout):
        job.result(timeout_s=1.5, on_wait=told.append)
    assert len(told) > 2
    assert "no worker serves gpt-4" in told[0].describe()
    told.clear()
    with pytest.raises(ResultTimeout):
        list(job.stream(timeout_s=1.5, on_wait=told.append))
    assert told


def test_a_broker_that_is_slow_at_the_end_of_a_wait_is_not_lost(
    bench: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_limits, "REPORT_INTERVAL_S", 0.1)
    job = client.submit("hi")
    begun = time.monotonic()

    def pause_near_the_end(_: JobProgress) -> None:
        if time.monotonic() - begun > 1.0:
            bench.redis.client_pause(700)

    with pytest.raises(ResultTimeout):
        job.result(timeout_s=1.5, on_wait=pause_near_the_end)


def test_without_a_callback_an_unserved_model_is_logged_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wait_limits, "REPORT_INTERVAL_S", 0.1)

    async def wait() -> None:
        async with AsyncClient(redis_url) as client:
            job = await client.submit("hi", model="gpt-4")
            with pytest.raises(ResultTimeout):
                await job.result(timeout_s=1)

    with caplog.at_level(logging.WARNING, logger="batchmill"):
        asyncio.run(wait())
    assert [record.message.split(", ")[-1] for record in caplog.records] == [unserved("gpt-4", ())]


def test_many_served_models_are_not_all_named() -> None:
    models = [f"m{number}" for number in range(12)]
    assert unserved("x", models).endswith("m7 and 4 more")
