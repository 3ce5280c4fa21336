"""A worker whose engine dies with one job after another ends itself instead of the jobs."""

from __future__ import annotations

import pytest

from batchmill.producer.protocol.replies import JobState
from batchmill.worker.jobs.engine_breaker import MAX_GUILTY_JOBS, EngineBreaker

from ..conftest import Mill


def test_a_worker_whose_engine_dies_with_every_job_stops_and_blames_none(mill: Mill) -> None:
    jobs = [mill.submit(f"{number} <<crash@0>>") for number in range(MAX_GUILTY_JOBS + 2)]

    worker = mill.launch()

    assert worker.process.wait(timeout=60) != 0
    assert "this machine is at fault" in worker.log
    records = [mill.record(job_id) for job_id in jobs]
    assert {record.state for record in records} == {JobState.QUEUED}


@pytest.mark.parametrize("companions", [0, 7])
def test_one_job_that_ends_engines_is_not_the_workers_fault(companions: int) -> None:
    breaker = EngineBreaker()
    for death in range(50):
        others = {f"{death}.{number}" for number in range(companions)}
        assert breaker.note_death({"poison", *others}) is None


def test_jobs_that_finish_or_make_progress_clear_the_engine() -> None:
    breaker = EngineBreaker()
    for death in range(50):
        assert breaker.note_death({f"poison {death}"}) is None
        if death % 4 == 0:
            breaker.note_finished()
        if death % 4 == 2:
            breaker.note_tokens(600)


def test_different_jobs_that_die_alone_after_a_batch_died_are_the_workers_fault() -> None:
    breaker = EngineBreaker()
    batch = [f"job {number}" for number in range(64)]
    assert breaker.note_death(batch) is None
    assert breaker.note_death(batch[:8]) is None
    for job_id in batch[: MAX_GUILTY_JOBS - 1]:
        assert breaker.note_death({job_id}) is None
    assert breaker.note_death({batch[MAX_GUILTY_JOBS]}) is not None
