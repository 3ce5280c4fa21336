"""The oracle of `batchmill bench chaos` reports what is lost, doubled or wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from batchmill.producer.protocol.replies import JobState
from batchmill.worker.chaos.observed import Observed, ObservedBatch, ObservedJob
from batchmill.worker.chaos.oracle import (
    MAX_GROWTH_BYTES,
    MAX_GROWTH_FDS,
    Allowances,
    Promise,
    judge_jobs,
    judge_resources,
)
from batchmill.worker.chaos.plan import Plan, make_plan
from batchmill.worker.chaos.planned_jobs import Order, OrderKind, PlannedJob
from batchmill.worker.chaos.resources import ProcessUse
from batchmill.worker.chaos.run import expect_stub

PLAN = make_plan(seed=5, num_jobs=400, duration_s=10, lease_s=2, kinds=(), has_stub=True)
Change = Callable[[Observed], object]


def end_of(order: Order, job: PlannedJob) -> ObservedJob:
    """Return how a job ends if nothing goes wrong."""
    text = expect_stub(job)
    state = job.ends[0]
    is_task = order.kind in (OrderKind.TASK, OrderKind.CHAIN, OrderKind.GROUP, OrderKind.CHORD)
    return ObservedJob(
        job_id=f"id-{job.name}",
        state=state,
        text=text if state is JobState.COMPLETED else "",
        error_code=job.error_code,
        attempts=1,
        celery_status="SUCCESS" if is_task else "",
        celery_text=text if is_task else "",
        num_computed=job.max_tokens,
        num_distinct=job.max_tokens,
    )


def kept(plan: Plan) -> Observed:
    """Return what is seen after a run in which every promise was kept."""
    seen = Observed()
    for order, job in plan.jobs:
        end = seen.jobs[job.name] = end_of(order, job)
        seen.submitted.job_ids[job.name] = end.job_id
        if job.webhook:
            deliver(seen, f"evt_{end.job_id}_{end.state}")
    for order in plan.orders:
        number, size = order.number, len(order.jobs)
        if order.kind is OrderKind.BATCH:
            seen.batches[number] = ObservedBatch(f"b-{number}", "completed", size, size, 0)
            if order.webhook:
                deliver(seen, f"evt_b-{number}_completed")
        elif order.kind in (OrderKind.CHAIN, OrderKind.CHORD):
            seen.submitted.follow_up_ids[number] = f"f-{number}"
            seen.follow_ups[f"f-{number}"] = 1
        elif order.kind is OrderKind.BOMB_CLIENT:
            seen.submitted.refusals[number] = "structure_too_complex"
        elif order.kind is OrderKind.BOMB_INBOX:
            seen.submitted.job_ids[f"bomb-{number}"] = f"bomb-{number}"
            seen.dead_letters[f"bomb-{number}"] = "structure_too_complex: takes too long"
        elif order.kind is OrderKind.BOMB_TASK:
            seen.submitted.job_ids[f"bomb-{number}"] = f"bomb-{number}"
            refused = ObservedJob(f"bomb-{number}", None, celery_status="FAILURE")
            seen.jobs[f"bomb-{number}"] = refused
    return seen


def deliver(seen: Observed, event_id: str, body: bytes = b"body") -> None:
    seen.deliveries.accepted.add(event_id)
    seen.deliveries.bodies.setdefault(event_id, set()).add(body)


def first(kind: OrderKind, *, with_webhook: bool = False) -> Order:
    """Return the first order of a kind."""
    return next(
        order
        for order in PLAN.orders
        if order.kind is kind and (not with_webhook or order.webhook or order.jobs[0].webhook)
    )


JOB = first(OrderKind.JOB, with_webhook=True).jobs[0]
JOB_ID = f"id-{JOB.name}"


def change(kind: OrderKind = OrderKind.JOB, **fields: object) -> Change:
    """Return a change of how the first job of a kind ended."""
    name = (JOB if kind is OrderKind.JOB else first(kind).jobs[0]).name

    def act(seen: Observed) -> None:
        seen.jobs[name] = replace(seen.jobs[name], **fields)  # type: ignore[arg-type]

    return act


def test_a_run_that_kept_every_promise_is_reported_so() -> None:
    assert list(judge_jobs(PLAN, kept(PLAN), expect_stub, Allowances())) == []


def test_the_plan_of_these_tests_has_every_kind_of_order() -> None:
    assert {order.kind for order in PLAN.orders} == set(OrderKind)


BATCH = first(OrderKind.BATCH, with_webhook=True).number
CHAIN, BOMB = first(OrderKind.CHAIN).number, first(OrderKind.BOMB_CLIENT).number
MUTANTS: dict[str, tuple[Promise, Change]] = {
    "no record": (Promise.LOST, change(state=None)),
    "never submitted": (Promise.LOST, lambda seen: seen.jobs.pop(JOB.name)),
    "not ended": (Promise.LOST, change(state=JobState.IN_PROGRESS)),
    "wrong token": (Promise.WRONG, change(text=expect_stub(JOB)[:-1] + "x")),
    "cut text": (Promise.WRONG, change(text=expect_stub(JOB)[:-1])),
    "text twice": (Promise.WRONG, change(text=expect_stub(JOB) * 2)),
    "innocent failed": (
        Promise.CHARGED,
        change(OrderKind.BATCH, state=JobState.FAILED, error_code="attempts_exhausted"),
    ),
    "crash of an innocent": (Promise.CHARGED, change(crashes=1)),
    "poison completed": (Promise.WRONG, change(OrderKind.POISON, state=JobState.COMPLETED)),
    "cancelled text": (
        Promise.WRONG,
        change(OrderKind.CANCELLED, state=JobState.CANCELLED, text="another"),
    ),
    "recomputed": (Promise.RECOMPUTED, change(num_computed=JOB.max_tokens + 10)),
    "no Celery result": (Promise.LOST, change(OrderKind.TASK, celery_status="")),
    "Celery failure": (Promise.WRONG, change(OrderKind.TASK, celery_status="FAILURE")),
    "Celery text": (Promise.WRONG, change(OrderKind.TASK, celery_text="other")),
    "no webhook": (
        Promise.LOST,
        lambda seen: seen.deliveries.accepted.discard(f"evt_{JOB_ID}_completed"),
    ),
    "two bodies": (
        Promise.WRONG,
        lambda seen: deliver(seen, f"evt_{JOB_ID}_completed", b"another"),
    ),
    "two ends": (Promise.DOUBLED, lambda seen: deliver(seen, f"evt_{JOB_ID}_failed")),
    "no batch": (Promise.LOST, lambda seen: seen.batches.pop(BATCH)),
    "batch counted twice": (
        Promise.WRONG,
        lambda seen: seen.batches.update(
            {BATCH: replace(seen.batches[BATCH], completed=seen.batches[BATCH].total + 1)}
        ),
    ),
    "batch without event": (
        Promise.LOST,
        lambda seen: seen.deliveries.accepted.discard(f"evt_b-{BATCH}_completed"),
    ),
    "no follow-up": (Promise.LOST, lambda seen: seen.follow_ups.clear()),
    "two follow-ups": (Promise.DOUBLED, lambda seen: seen.follow_ups.update([f"f-{CHAIN}"])),
    "accepted bomb": (Promise.WRONG, lambda seen: seen.submitted.refusals.clear()),
    "surprised producer": (
        Promise.LOST,
        lambda seen: seen.submitted.surprises.update({BOMB: "KeyError: 'x'"}),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_reported(name: str) -> None:
    promise, act = MUTANTS[name]
    seen = kept(PLAN)
    act(seen)

    broken = list(judge_jobs(PLAN, seen, expect_stub, Allowances()))

    assert broken[0].promise is promise, broken


def test_a_job_may_compute_more_again_if_no_checkpoint_could_be_saved() -> None:
    seen = kept(PLAN)
    change(num_computed=JOB.max_tokens + 100, attempts=2)(seen)

    assert list(judge_jobs(PLAN, seen, expect_stub, Allowances(frozenset([JOB_ID])))) == []


def test_a_job_may_be_charged_with_an_engine_that_a_fault_killed_but_no_more() -> None:
    seen = kept(PLAN)
    change(crashes=1, attempts=2)(seen)

    allowed = Allowances(killed_engines={JOB_ID: 1})
    assert list(judge_jobs(PLAN, seen, expect_stub, allowed)) == []
    change(crashes=2, attempts=3)(seen)
    (broken,) = judge_jobs(PLAN, seen, expect_stub, allowed)
    assert broken.promise is Promise.CHARGED


def test_a_workflow_whose_publication_failed_is_not_judged() -> None:
    seen = kept(PLAN)
    seen.follow_ups.clear()
    seen.submitted.abandoned.update(seen.submitted.follow_up_ids)

    assert list(judge_jobs(PLAN, seen, expect_stub, Allowances())) == []


@pytest.mark.parametrize(
    ("use", "num_broken"),
    [
        (ProcessUse("w", 9, 100, 20, 100 + MAX_GROWTH_BYTES, 20 + MAX_GROWTH_FDS), 0),
        (ProcessUse("w", 9, 100, 20, 101 + MAX_GROWTH_BYTES, 20), 1),
        (ProcessUse("w", 9, 100, 20, 100, 21 + MAX_GROWTH_FDS), 1),
    ],
)
def test_growth_of_a_process_beyond_a_limit_is_a_leak(use: ProcessUse, num_broken: int) -> None:
    broken = list(judge_resources({1: use}, []))
    assert [each.promise for each in broken] == [Promise.LEAKED] * num_broken


def test_a_key_that_is_left_is_a_leak() -> None:
    (broken,) = judge_resources({}, ["batchmill:jobs:state:queued"])
    assert (broken.promise, broken.subject) == (Promise.LEAKED, "batchmill:jobs:state:queued")
