"""Which jobs are in the engine: order, isolation, and engine deaths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchmill.producer.protocol.replies import Claim
from batchmill.producer.protocol.scripts import definitions
from batchmill.worker.engine_host.messages import AbortRequest, AddRequest
from batchmill.worker.jobs.active_job import PROGRESS_TOKENS, SUSPECT_GROUP, ActiveJob
from batchmill.worker.jobs.active_jobs import ActiveJobs

from ...support.pictures import decoded
from ..celery_tasks import a_task


def a_job(
    name: str, *, alone: bool = False, suspect: int = 0, identity: str = "model-1"
) -> ActiveJob:
    claim = Claim(name, "1.n", b"{}", [], 1, alone, None, 0, 0, 0, suspect, identity=identity)
    return ActiveJob(claim, AddRequest(f"{name}.1", "prompt", None, {}), a_task(name))


class Engine:
    """Records the messages that it gets."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    @property
    def request_ids(self) -> list[str]:
        return [m.request_id for m in self.sent if isinstance(m, AddRequest)]


def submitted(*jobs: ActiveJob) -> tuple[ActiveJobs, Engine]:
    engine = Engine()
    active = ActiveJobs(engine.sent.append)
    active.engine_ready("model-1")
    for job in jobs:
        active.add(job)
    return active, engine


def test_jobs_of_another_identity_never_reach_the_engine() -> None:
    """The engine was replaced between their claim and their submission."""
    engine = Engine()
    active = ActiveJobs(engine.sent.append)
    early, right = a_job("early", identity="model-0"), a_job("right")
    assert active.add(early)
    assert active.add(right)
    assert active.engine_ready("model-1") == [early]
    assert not active.add(a_job("late", identity="model-0"))
    assert engine.request_ids == ["right.1"]
    assert active.snapshot() == [right]


def test_pixels_are_not_kept_once_the_engine_has_them() -> None:
    job = a_job("a")
    job.request = replace(job.request, media=[decoded()])
    _, engine = submitted(job)
    assert [message.media for message in engine.sent] == [[decoded()]]
    assert job.request.media == ()
    assert job.request_id == "a.1"


def test_jobs_are_submitted_in_their_order_once_the_engine_is_ready() -> None:
    engine = Engine()
    active = ActiveJobs(engine.sent.append)
    active.add(a_job("a"))
    active.add(a_job("b"))
    assert (engine.sent, active.num_pending) == ([], 2)

    active.engine_ready("model-1")

    assert engine.request_ids == ["a.1", "b.1"]
    assert (active.num_pending, len(active)) == (0, 2)


def test_a_job_that_must_run_alone_waits_for_an_empty_engine() -> None:
    first, alone, after = a_job("first"), a_job("alone", alone=True), a_job("after")
    active, engine = submitted(first, alone, after)
    assert engine.request_ids == ["first.1"]
    assert active.needs_isolation

    active.remove(first)
    assert engine.request_ids == ["first.1", "alone.1"]
    assert active.needs_isolation

    active.remove(alone)
    assert engine.request_ids == ["first.1", "alone.1", "after.1"]
    assert not active.needs_isolation


def test_two_jobs_that_must_run_alone_do_not_run_together() -> None:
    one, two = a_job("one", alone=True), a_job("two", alone=True)
    active, engine = submitted(one, two)
    assert engine.request_ids == ["one.1"]

    active.remove(one)

    assert engine.request_ids == ["one.1", "two.1"]


def test_suspects_run_in_small_groups_apart_from_the_others() -> None:
    before, after = a_job("before", suspect=1), a_job("after")
    suspects = [a_job(f"suspect {index}", suspect=2) for index in range(SUSPECT_GROUP + 1)]
    active, engine = submitted(before, *suspects, after)
    assert engine.request_ids == ["before.1"]

    active.remove(before)
    assert engine.request_ids[1:] == [f"suspect {index}.1" for index in range(SUSPECT_GROUP)]
    assert not active.needs_isolation, "more suspects may join"

    active.remove(suspects[3])
    assert engine.request_ids[-1] == suspects[-1].request_id
    for job in suspects:
        assert after.request_id not in engine.request_ids
        active.remove(job)
    assert engine.request_ids[-1] == after.request_id


def progress(job: ActiveJob) -> None:
    job.receive(range(PROGRESS_TOKENS), "")


def test_progress_clears_suspects_while_they_run() -> None:
    suspects = [a_job(f"suspect {index}", suspect=2) for index in range(SUSPECT_GROUP + 1)]
    normal = a_job("normal")
    active, engine = submitted(*suspects, normal)
    assert len(engine.request_ids) == SUSPECT_GROUP

    progress(suspects[0])
    active.submit_pending()
    assert engine.request_ids[-1] == suspects[-1].request_id

    for suspect in suspects:
        assert normal.request_id not in engine.request_ids
        progress(suspect)
        active.submit_pending()
    assert engine.request_ids[-1] == normal.request_id


def test_progress_ends_the_isolation_of_a_job() -> None:
    alone, normal = a_job("alone", alone=True, suspect=3), a_job("normal")
    active, engine = submitted(alone, normal)
    assert active.needs_isolation
    progress(alone)
    active.submit_pending()
    assert engine.request_ids == ["alone.1", "normal.1"]
    assert not active.needs_isolation


def test_a_suspect_does_not_hold_up_a_busy_worker_for_long() -> None:
    normal, suspect = a_job("normal"), a_job("suspect", suspect=2)
    active, engine = submitted(normal, suspect)
    active.submit_pending()
    assert active.num_pending == 1

    suspect.claimed_at -= 11
    active.submit_pending()

    assert engine.request_ids == ["normal.1", "suspect.1"]


def test_the_progress_that_clears_a_job_is_that_of_the_record() -> None:
    [found] = [each for each in definitions("finish") if each.name == "PROGRESS_TOKENS"]
    assert f"= {PROGRESS_TOKENS} " in found.text


def test_a_job_that_must_run_alone_does_not_join_a_group() -> None:
    suspect, alone = a_job("suspect", suspect=2), a_job("alone", alone=True, suspect=3)
    active, engine = submitted(suspect, alone)
    assert engine.request_ids == ["suspect.1"]
    active.remove(suspect)
    assert engine.request_ids == ["suspect.1", "alone.1"]


def test_a_removed_job_never_reaches_the_engine() -> None:
    alone, waiting = a_job("alone", alone=True), a_job("waiting")
    active, engine = submitted(alone, waiting)

    assert active.remove(waiting)
    active.remove(alone)

    assert engine.request_ids == ["alone.1"]
    assert not active.remove(waiting)
    assert len(active) == 0


def test_only_a_job_in_the_engine_is_aborted_there() -> None:
    alone, waiting = a_job("alone", alone=True), a_job("waiting")
    active, engine = submitted(alone, waiting)

    assert active.abort(alone)
    assert not active.abort(waiting)

    assert engine.sent[-1] == AbortRequest("alone.1")


def test_an_engine_death_separates_jobs_in_the_engine_from_pending_ones() -> None:
    alone, waiting = a_job("alone", alone=True), a_job("waiting")
    active, engine = submitted(alone, waiting)

    in_engine, pending = active.engine_gone()

    assert (in_engine, pending) == ([alone], [waiting])
    assert (len(active), active.needs_isolation) == (0, False)
    active.add(a_job("next"))
    assert engine.request_ids == ["alone.1"]
    active.engine_ready("model-1")
    assert engine.request_ids == ["alone.1", "next.1"]


def test_tokens_are_written_from_where_the_record_ends() -> None:
    job = a_job("a")
    job.receive([1, 2, 3], "abc")
    job.num_saved = 2

    write = job.unsaved()

    assert (write.position, list(write.token_ids), job.num_unsaved) == (2, [3], 1)
