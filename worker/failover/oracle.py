"""What may happen to jobs in a failover that loses writes, and what may not. No I/O.

A job that the new primary does not know was never accepted by a replica: its sender submits it
again, by its idempotency key. A job whose end was lost runs again from an older checkpoint. Neither
breaks a promise. A lost job, a second result with another text, an end under two webhook ids, and a
write by a worker whose claim was lost do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Promise(StrEnum):
    """A promise that a run must keep."""

    LOST = "lost"
    DOUBLED = "doubled"
    FENCE = "fence"
    WRONG = "wrong"


@dataclass(slots=True)
class TrackedJob:
    """One job of the run, by its idempotency key, with all that was seen of it."""

    key: str
    prompt: str
    max_tokens: int
    #: Ids that the key had: more than one if a failover lost the job and it was submitted again.
    job_ids: list[str] = field(default_factory=list)
    #: Texts of results that were read or delivered.
    texts: set[str] = field(default_factory=set)
    #: State at the end of the run; empty without a record.
    state: str = ""
    #: Fence of its last claim, and fence of the claim that wrote its end.
    fence: str = ""
    completed_fence: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """One broken promise."""

    promise: Promise
    key: str
    detail: str


def judge(
    jobs: Sequence[TrackedJob], expected: Mapping[str, str], webhooks: Mapping[str, set[str]]
) -> Iterator[Broken]:
    """Yield the promises that were broken.

    Args:
        jobs: all jobs.
        expected: the right text of each job, by its key.
        webhooks: ids of the webhook events that receivers accepted, by the job's id.
    """
    for job in jobs:
        if job.state != "completed":
            yield Broken(Promise.LOST, job.key, f"it is {job.state or 'unknown'} at the end")
            continue
        if len(job.texts) > 1:
            detail = f"{len(job.texts)} different results were read or delivered"
            yield Broken(Promise.DOUBLED, job.key, detail)
        elif job.texts != {expected[job.key]}:
            yield Broken(Promise.WRONG, job.key, "its result is not that of a run without faults")
        if job.fence != job.completed_fence:
            detail = f"claim {job.completed_fence} wrote the end after claim {job.fence}"
            yield Broken(Promise.FENCE, job.key, detail)
        for job_id in job.job_ids:
            events = webhooks.get(job_id, set())
            if len(events) > 1:
                detail = f"its end was reported under {len(events)} webhook ids"
                yield Broken(Promise.DOUBLED, job.key, detail)
        if not webhooks.get(job.job_ids[-1]):
            yield Broken(Promise.LOST, job.key, "its webhook did not arrive")
