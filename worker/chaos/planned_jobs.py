"""The jobs of a plan: orders of one or more jobs, and what each must become."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from batchmill.producer.protocol.replies import JobState

_STUB_WORDS = ("mill", "water", "wheel", "grain", "stone", "sack", "ear", "dust", "sieve", "flour")
#: Prompts for a real engine, whose texts must be measured first: few, and short.
_REAL_PROMPTS = tuple(f"Write a line about a {word} and its use." for word in _STUB_WORDS[:6])
_REAL_MAX_TOKENS = (8, 24, 48)


class OrderKind(StrEnum):
    """How jobs are submitted, and what is done to them."""

    JOB = "job"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    FAILING = "failing"
    POISON = "poison"
    BATCH = "batch"
    INBOX = "inbox"
    TASK = "task"
    CHAIN = "chain"
    GROUP = "group"
    CHORD = "chord"
    BOMB_CLIENT = "bomb_client"
    BOMB_INBOX = "bomb_inbox"
    BOMB_TASK = "bomb_task"


#: Kinds that are one Celery workflow, published in one piece.
WORKFLOWS = (OrderKind.CHAIN, OrderKind.GROUP, OrderKind.CHORD)
#: Kinds with a structure that must be refused; none becomes a job.
BOMBS = (OrderKind.BOMB_CLIENT, OrderKind.BOMB_INBOX, OrderKind.BOMB_TASK)
#: Kinds that a client library submits.
_BY_CLIENT = (
    *(OrderKind.JOB, OrderKind.CANCELLED, OrderKind.DEADLINE),
    *(OrderKind.FAILING, OrderKind.POISON),
)
_WEIGHTS = {
    OrderKind.JOB: 60.0,
    OrderKind.CANCELLED: 5.0,
    OrderKind.DEADLINE: 3.0,
    OrderKind.FAILING: 1.0,
    OrderKind.BATCH: 1.0,
    OrderKind.INBOX: 6.0,
    OrderKind.TASK: 6.0,
    OrderKind.CHAIN: 1.5,
    OrderKind.GROUP: 1.0,
    OrderKind.CHORD: 1.5,
}
_NUM_JOBS = {
    OrderKind.BATCH: (4, 16),
    OrderKind.CHAIN: (2, 2),
    OrderKind.GROUP: (2, 4),
    OrderKind.CHORD: (2, 3),
}
_ENDS = {
    OrderKind.CANCELLED: (JobState.COMPLETED, JobState.CANCELLED),
    OrderKind.DEADLINE: (JobState.COMPLETED, JobState.EXPIRED),
    OrderKind.FAILING: (JobState.FAILED,),
    OrderKind.POISON: (JobState.FAILED,),
}
_ERROR_CODES = {
    OrderKind.FAILING: "numerical_error",
    OrderKind.POISON: "attempts_exhausted",
}
#: Seconds until the cancellation or the deadline: least and most.
_AFTER_S = {OrderKind.CANCELLED: (0.0, 1.0), OrderKind.DEADLINE: (0.05, 2.0)}
#: Paths of the receiver: quick, slow, and two that fail at first.
_PATHS = ("/ok", "/ok", "/ok", "/slow", "/fail-1", "/fail-2")


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job."""

    name: str
    prompt: str
    max_tokens: int
    seed: int
    #: States in which it may end.
    ends: tuple[JobState, ...]
    #: Code of its error, if it must fail.
    error_code: str
    #: Path of the receiver of its webhook; empty without one.
    webhook: str


@dataclass(frozen=True, slots=True)
class Order:
    """Jobs that are submitted together."""

    number: int
    kind: OrderKind
    #: Seconds after the start.
    at_s: float
    jobs: tuple[PlannedJob, ...]
    #: Path of the receiver of the batch's event.
    webhook: str
    #: Seconds until it is cancelled, or until its deadline.
    after_s: float


def draw_orders(
    rng: random.Random, num_jobs: int, duration_s: float, *, has_stub: bool
) -> tuple[Order, ...]:
    """Return orders of `num_jobs` jobs, poison included, by the time of their submission."""
    orders = [
        _draw_order(rng, number, kind, size, duration_s, has_stub=has_stub)
        for number, (kind, size) in enumerate(_draw_kinds(rng, num_jobs, has_stub=has_stub))
    ]
    return tuple(sorted(orders, key=lambda order: (order.at_s, order.number)))


def _draw_kinds(
    rng: random.Random, num_jobs: int, *, has_stub: bool
) -> Iterator[tuple[OrderKind, int]]:
    """Yield the kind and the number of jobs of each order."""
    for bomb in BOMBS * (1 + num_jobs // 4000):
        yield bomb, 0
    if has_stub:
        for _ in range(min(num_jobs, 1 + num_jobs // 1500)):
            num_jobs -= 1
            yield OrderKind.POISON, 1
    kinds = [kind for kind in _WEIGHTS if has_stub or kind is not OrderKind.FAILING]
    weights = [_WEIGHTS[kind] for kind in kinds]
    while num_jobs > 0:
        (kind,) = rng.choices(kinds, weights)
        size = rng.randint(*_NUM_JOBS.get(kind, (1, 1)))
        if size > num_jobs:
            kind, size = OrderKind.JOB, 1
        num_jobs -= size
        yield kind, size


def _draw_order(
    rng: random.Random,
    number: int,
    kind: OrderKind,
    num_jobs: int,
    duration_s: float,
    *,
    has_stub: bool,
) -> Order:
    # Poison and bombs take long to be found out, so they come early.
    share = 0.3 if kind in (OrderKind.POISON, *BOMBS) else 0.95
    at_s = round(rng.uniform(0.0, share * duration_s), 3)
    draw = _draw_stub_job if has_stub else _draw_real_job
    jobs = tuple(draw(rng, number, place, kind) for place in range(num_jobs))
    webhook = rng.choice(_PATHS) if kind is OrderKind.BATCH else ""
    least_s, most_s = _AFTER_S.get(kind, (0.0, 0.0))
    return Order(number, kind, at_s, jobs, webhook, round(rng.uniform(least_s, most_s), 3))


def _draw_stub_job(rng: random.Random, number: int, place: int, kind: OrderKind) -> PlannedJob:
    (longest,) = rng.choices((20, 80, 250, 700), (40, 45, 12, 3))
    max_tokens = rng.randint(1, longest)
    prompt = " ".join(rng.choices(_STUB_WORDS, k=rng.randint(1, 12))) + f" {number}.{place}"
    if kind is OrderKind.POISON:
        max_tokens = 40
        prompt += f" <<crash@{rng.randint(0, 30)}>>"
    elif kind is OrderKind.FAILING:
        prompt += f" <<error@{rng.randint(0, max_tokens - 1)}>>"
    return _job(rng, number, place, kind, prompt, max_tokens)


def _draw_real_job(rng: random.Random, number: int, place: int, kind: OrderKind) -> PlannedJob:
    prompt, max_tokens = rng.choice(_REAL_PROMPTS), rng.choice(_REAL_MAX_TOKENS)
    return _job(rng, number, place, kind, prompt, max_tokens)


def _job(
    rng: random.Random, number: int, place: int, kind: OrderKind, prompt: str, max_tokens: int
) -> PlannedJob:
    has_webhook = kind in (*_BY_CLIENT, OrderKind.INBOX, OrderKind.TASK) and rng.random() < 0.6
    return PlannedJob(
        name=f"{number}.{place}",
        prompt=prompt,
        max_tokens=max_tokens,
        seed=rng.randint(0, 999),
        ends=_ENDS.get(kind, (JobState.COMPLETED,)),
        error_code=_ERROR_CODES.get(kind, ""),
        webhook=rng.choice(_PATHS) if has_webhook else "",
    )
