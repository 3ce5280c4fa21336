"""Which jobs are on board: order, quiet for those that must run alone, and engine deaths."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol.replies import Claim
from batchmill.worker.engine_host.messages import AbortRequest, AddRequest
from batchmill.worker.jobs.active_jobs import SUSPECT_GROUP, ActiveJob, ActiveJobs
from batchmill.worker.jobs.delivery import Delivery


def nothing(*_: Any) -> None:
    pass


def a_job(name: str, *, alone: bool = False, suspect: int = 0) -> ActiveJob:
    claim = Claim(name, 1, b"{}", [], 1, alone, None, 0, 0, 0, suspect)
    delivery = Delivery(name, nothing, ("task", name, {}), nothing, nothing, nothing)
    return ActiveJob(claim, AddRequest(f"{name}.1", "prompt", None, {}), delivery)


class Engine:
    """Keeps what was sent to it."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    @property
    def on_board(self) -> list[str]:
        return [m.request_id for m in self.sent if isinstance(m, AddRequest)]


def boarded(*jobs: ActiveJob) -> tuple[ActiveJobs, Engine]:
    engine = Engine()
    active = ActiveJobs(engine.sent.append)
    active.engine_up()
    for job in jobs:
        active.add(job)
    return active, engine


def test_jobs_go_on_board_in_their_order_once_the_engine_is_up() -> None:
    engine = Engine()
    active = ActiveJobs(engine.sent.append)
    active.add(a_job("a"))
    active.add(a_job("b"))
    assert (engine.sent, active.num_held) == ([], 2)

    active.engine_up()

    assert engine.on_board == ["a.1", "b.1"]
    assert (active.num_held, len(active)) == (0, 2)


def test_a_job_that_must_run_alone_waits_for_an_empty_engine() -> None:
    first, alone, after = a_job("first"), a_job("alone", alone=True), a_job("after")
    active, engine = boarded(first, alone, after)
    assert engine.on_board == ["first.1"]
    assert active.needs_quiet

    active.remove(first)
    assert engine.on_board == ["first.1", "alone.1"]
    assert active.needs_quiet

    active.remove(alone)
    assert engine.on_board == ["first.1", "alone.1", "after.1"]
    assert not active.needs_quiet


def test_two_jobs_that_must_run_alone_do_not_run_together() -> None:
    one, two = a_job("one", alone=True), a_job("two", alone=True)
    active, engine = boarded(one, two)
    assert engine.on_board == ["one.1"]

    active.remove(one)

    assert engine.on_board == ["one.1", "two.1"]


def test_suspects_run_in_small_groups_apart_from_the_others() -> None:
    before, after = a_job("before", suspect=1), a_job("after")
    suspects = [a_job(f"suspect {index}", suspect=2) for index in range(SUSPECT_GROUP + 1)]
    active, engine = boarded(before, *suspects, after)
    assert engine.on_board == ["before.1"]

    active.remove(before)
    assert engine.on_board[1:] == [f"suspect {index}.1" for index in range(SUSPECT_GROUP)]
    assert not active.needs_quiet, "more of them may come"

    active.remove(suspects[3])
    assert engine.on_board[-1] == suspects[-1].request_id
    for job in suspects:
        assert after.request_id not in engine.on_board
        active.remove(job)
    assert engine.on_board[-1] == after.request_id


def test_a_job_that_must_run_alone_does_not_join_a_group() -> None:
    suspect, alone = a_job("suspect", suspect=2), a_job("alone", alone=True, suspect=3)
    active, engine = boarded(suspect, alone)
    assert engine.on_board == ["suspect.1"]
    active.remove(suspect)
    assert engine.on_board == ["suspect.1", "alone.1"]


def test_a_removed_job_never_reaches_the_engine() -> None:
    alone, held = a_job("alone", alone=True), a_job("held")
    active, engine = boarded(alone, held)

    assert active.remove(held)
    active.remove(alone)

    assert engine.on_board == ["alone.1"]
    assert not active.remove(held)
    assert len(active) == 0


def test_only_a_job_on_board_is_aborted_in_the_engine() -> None:
    alone, held = a_job("alone", alone=True), a_job("held")
    active, engine = boarded(alone, held)

    assert active.abort(alone)
    assert not active.abort(held)

    assert engine.sent[-1] == AbortRequest("alone.1")


def test_an_engine_death_tells_those_on_board_from_those_held() -> None:
    alone, held = a_job("alone", alone=True), a_job("held")
    active, engine = boarded(alone, held)

    on_board, waiting = active.engine_down()

    assert (on_board, waiting) == ([alone], [held])
    assert (len(active), active.needs_quiet) == (0, False)
    active.add(a_job("next"))
    assert engine.on_board == ["alone.1"]
    active.engine_up()
    assert engine.on_board == ["alone.1", "next.1"]


def test_tokens_are_written_from_where_the_record_ends() -> None:
    job = a_job("a")
    job.receive([1, 2, 3], "abc")
    job.num_saved = 2

    write = job.unsaved()

    assert (write.position, list(write.token_ids), job.num_unsaved) == (2, [3], 1)
