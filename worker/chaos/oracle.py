"""Judges a run: every promise that was broken, with the job and what was seen. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from batchmill.producer.protocol.replies import JobState

from .observed import Observed, ObservedJob
from .plan import Plan
from .planned_jobs import BOMBS, Order, OrderKind, PlannedJob
from .resources import ProcessUse
from .traffic import BOMB_PREFIX

#: Returns the text that a job must produce.
Expect = Callable[[PlannedJob], str]
#: Tokens that a loss may cost a job: a checkpoint interval, and the step that runs.
MAX_RECOMPUTED_PER_LOSS = 9
#: Error code of a structure that passes a limit of its check.
TOO_COMPLEX = "structure_too_complex"
#: Growth of one process that counts as a leak.
MAX_GROWTH_BYTES = 64 << 20
MAX_GROWTH_FDS = 40
#: Celery's state for each end of a job.
_CELERY_STATES = {
    JobState.COMPLETED: "SUCCESS",
    JobState.FAILED: "FAILURE",
    JobState.CANCELLED: "REVOKED",
    JobState.EXPIRED: "REVOKED",
}


class Promise(StrEnum):
    """A promise that a run must keep."""

    LOST = "lost"
    DOUBLED = "doubled"
    WRONG = "wrong"
    CHARGED = "innocent charged"
    RECOMPUTED = "recomputed too much"
    LEAKED = "leaked"
    ENDED = "ended by itself"


@dataclass(frozen=True, slots=True)
class Broken:
    """One broken promise."""

    promise: Promise
    #: The job, batch, event, key or program.
    subject: str
    detail: str
    #: Ids of jobs, events, batches and tasks whose traces explain it.
    ids: tuple[str, ...] = ()
    #: Values that should have been equal, by what they are.
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Allowances:
    """What faults did to jobs that nothing can prevent.

    Attributes:
        hindered: ids of jobs that ran while no checkpoint could be saved.
        killed_engines: by job, how many of its attempts ended because a fault killed their engine.
    """

    hindered: frozenset[str] = frozenset()
    killed_engines: Mapping[str, int] = field(default_factory=dict)


def judge_jobs(
    plan: Plan, observed: Observed, expect: Expect, allowances: Allowances
) -> Iterator[Broken]:
    """Yield the promises about jobs, batches, follow-ups and webhooks that were broken.

    Args:
        plan: what was meant to happen.
        observed: what was seen.
        expect: returns the text of a job that completes.
        allowances: what cannot be prevented.
    """
    for order in plan.orders:
        if order.number in observed.submitted.abandoned:
            continue
        if surprise := observed.submitted.surprises.get(order.number):
            yield Broken(Promise.LOST, f"order {order.number} ({order.kind})", surprise)
        elif order.kind in BOMBS:
            yield from _judge_bomb(order, observed)
        else:
            yield from _judge_order(order, observed, expect, allowances)


def _judge_order(
    order: Order, observed: Observed, expect: Expect, allowances: Allowances
) -> Iterator[Broken]:
    for job in order.jobs:
        seen = observed.jobs.get(job.name)
        if seen is None or seen.state is None:
            ids = () if seen is None else (seen.job_id,)
            yield Broken(Promise.LOST, _name(order, job, seen), "there is no record of it", ids)
            continue
        yield from _judge_end(order, job, seen, expect)
        yield from _judge_cost(order, job, seen, allowances)
        yield from _judge_celery(order, job, seen)
        if job.webhook and seen.state.is_terminal:
            event_id = f"evt_{seen.job_id}_{seen.state.value}"
            yield from _judge_event(event_id, seen.job_id, observed)
    if order.kind is OrderKind.BATCH:
        yield from _judge_batch(order, observed)
    if order.number in observed.submitted.follow_up_ids:
        yield from _judge_follow_up(order, observed)


def _judge_end(
    order: Order, job: PlannedJob, seen: ObservedJob, expect: Expect
) -> Iterator[Broken]:
    name, ids = _name(order, job, seen), (seen.job_id,)
    if seen.state is None or not seen.state.is_terminal:
        yield Broken(Promise.LOST, name, f"it has not ended: {seen.state}", ids)
    elif seen.state not in job.ends or (job.error_code and seen.error_code != job.error_code):
        code = f" ({seen.error_code})" if seen.error_code else ""
        wanted = " or ".join(job.ends) + (f" ({job.error_code})" if job.error_code else "")
        promise = Promise.CHARGED if seen.state is JobState.FAILED else Promise.WRONG
        yield Broken(promise, name, f"it ended as {seen.state}{code}, not as {wanted}", ids)
    elif seen.state is JobState.COMPLETED and seen.text != (text := expect(job)):
        values = {"seen": seen.text, "wanted": text}
        yield Broken(Promise.WRONG, name, _difference(seen.text, text), ids, values)
    elif not (text := expect(job)).startswith(seen.text):
        values = {"seen": seen.text, "wanted": text}
        detail = "its text is not the beginning of the right one"
        yield Broken(Promise.WRONG, name, detail, ids, values)


def _judge_cost(
    order: Order, job: PlannedJob, seen: ObservedJob, allowances: Allowances
) -> Iterator[Broken]:
    if order.kind is OrderKind.POISON:
        return
    if seen.crashes > allowances.killed_engines.get(seen.job_id, 0):
        detail = f"{seen.crashes} crashes are charged to it"
        yield Broken(Promise.CHARGED, _name(order, job, seen), detail, (seen.job_id,))
    num_recomputed = seen.num_computed - seen.num_distinct
    num_losses = max(1, seen.attempts - 1)
    is_hindered = seen.job_id in allowances.hindered
    if num_recomputed > MAX_RECOMPUTED_PER_LOSS * num_losses and not is_hindered:
        detail = f"{num_recomputed} tokens were computed again in {num_losses} losses"
        yield Broken(Promise.RECOMPUTED, _name(order, job, seen), detail, (seen.job_id,))


def _judge_celery(order: Order, job: PlannedJob, seen: ObservedJob) -> Iterator[Broken]:
    if order.kind not in (OrderKind.TASK, OrderKind.CHAIN, OrderKind.GROUP, OrderKind.CHORD):
        return
    if seen.state is None or not seen.state.is_terminal:
        return
    name, ids = _name(order, job, seen), (seen.job_id,)
    wanted = _CELERY_STATES[seen.state]
    if not seen.celery_status:
        yield Broken(Promise.LOST, name, f"Celery has no result, it should be {wanted}", ids)
    elif seen.celery_status != wanted:
        yield Broken(Promise.WRONG, name, f"Celery says {seen.celery_status}, not {wanted}", ids)
    elif wanted == "SUCCESS" and seen.celery_text != seen.text:
        detail = "Celery's result: " + _difference(seen.celery_text, seen.text)
        values = {"seen": seen.celery_text, "wanted": seen.text}
        yield Broken(Promise.WRONG, name, detail, ids, values)


def _judge_event(event_id: str, job_id: str, observed: Observed) -> Iterator[Broken]:
    """Check that an end was reported under one id with one body, and no other end was."""
    deliveries = observed.deliveries
    ids = (job_id, event_id)
    if event_id not in deliveries.accepted:
        yield Broken(Promise.LOST, event_id, "its receiver has not accepted it", ids)
    if len(deliveries.bodies.get(event_id, ())) > 1:
        yield Broken(Promise.WRONG, event_id, "it came with different bodies", ids)
    others = [
        f"evt_{job_id}_{state.value}"
        for state in JobState
        if state.is_terminal and f"evt_{job_id}_{state.value}" != event_id
    ]
    for other in others:
        if other in deliveries.bodies:
            detail = f"{event_id} reported the end already"
            yield Broken(Promise.DOUBLED, other, detail, (*ids, other))


def _judge_batch(order: Order, observed: Observed) -> Iterator[Broken]:
    batch = observed.batches.get(order.number)
    if batch is None:
        yield Broken(Promise.LOST, f"batch of order {order.number}", "there is no record of it")
        return
    total = len(order.jobs)
    seen = (batch.state, batch.total, batch.completed, batch.failed)
    if seen != (wanted := ("completed", total, total, 0)):
        ids = (batch.batch_id, *_job_ids(order, observed))
        yield Broken(Promise.WRONG, batch.batch_id, f"its counts are {seen}, not {wanted}", ids)
    if order.webhook:
        yield from _judge_event(f"evt_{batch.batch_id}_completed", batch.batch_id, observed)


def _judge_follow_up(order: Order, observed: Observed) -> Iterator[Broken]:
    task_id = observed.submitted.follow_up_ids[order.number]
    num_sent = observed.follow_ups[task_id]
    subject = f"follow-up {task_id} of order {order.number} ({order.kind})"
    ids = (task_id, *_job_ids(order, observed))
    if num_sent == 0:
        yield Broken(Promise.LOST, subject, "it was not sent", ids)
    elif num_sent > 1:
        yield Broken(Promise.DOUBLED, subject, f"it was sent {num_sent} times", ids)


def _judge_bomb(order: Order, observed: Observed) -> Iterator[Broken]:
    subject = f"bomb of order {order.number} ({order.kind})"
    if order.kind is OrderKind.BOMB_CLIENT:
        code = observed.submitted.refusals.get(order.number, "accepted")
    else:
        name = f"{BOMB_PREFIX}{order.number}"
        seen = observed.jobs.get(name)
        job_id = observed.submitted.job_ids.get(name, "")
        code = observed.dead_letters.get(job_id, "").partition(":")[0]
        if order.kind is OrderKind.BOMB_TASK and seen is not None:
            code = TOO_COMPLEX if seen.celery_status == "FAILURE" else seen.celery_status
    if code != TOO_COMPLEX:
        ids = (f"chaos-bomb-{order.number}",)
        detail = f"it was not refused as {TOO_COMPLEX}: {code or '-'}"
        yield Broken(Promise.WRONG, subject, detail, ids)


def judge_resources(uses: Mapping[int, ProcessUse], leftovers: list[str]) -> Iterator[Broken]:
    """Yield what leaked: memory and descriptors of processes, and keys in Redis."""
    for pid, use in uses.items():
        grown_bytes, grown_fds = use.rss_bytes - use.first_rss_bytes, use.fds - use.first_fds
        if grown_bytes > MAX_GROWTH_BYTES:
            detail = f"its memory grew by {grown_bytes >> 20} MiB"
            yield Broken(Promise.LEAKED, f"{use.program} (pid {pid})", detail)
        if grown_fds > MAX_GROWTH_FDS:
            detail = f"its file descriptors grew by {grown_fds}"
            yield Broken(Promise.LEAKED, f"{use.program} (pid {pid})", detail)
    for key in leftovers:
        yield Broken(Promise.LEAKED, key, "the key is left after everything was forgotten")


def _job_ids(order: Order, observed: Observed) -> tuple[str, ...]:
    ids = observed.submitted.job_ids
    return tuple(ids[job.name] for job in order.jobs if job.name in ids)


def _name(order: Order, job: PlannedJob, seen: ObservedJob | None) -> str:
    job_id = "-" if seen is None else seen.job_id
    return f"{order.kind} {job.name} ({job_id})"


def _difference(seen: str, wanted: str) -> str:
    """Describe how two texts differ, without printing them."""
    at = next((n for n, (a, b) in enumerate(zip(seen, wanted, strict=False)) if a != b), None)
    at = min(len(seen), len(wanted)) if at is None else at
    return f"its text has {len(seen)} characters, not {len(wanted)}; they differ from {at}"
