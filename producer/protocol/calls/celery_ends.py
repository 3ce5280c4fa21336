"""Calls that take the ends of plain Celery tasks, so that each is reported once."""

from __future__ import annotations

from batchmill.producer.protocol.replies import EndTaken

from .call import Call


def take_all(*, limit: int, grace_ms: int, lease_ms: int) -> Call[list[str]]:
    """Take ends that are `grace_ms` old and have not been reported."""
    return Call(
        "celery_ends_take",
        (limit, grace_ms, lease_ms),
        lambda reply: [job_id.decode(errors="replace") for job_id in reply],
    )


def take(job_id: str, *, lease_ms: int) -> Call[EndTaken]:
    """Take the end of one job."""
    return Call("celery_end_take", (job_id, lease_ms), lambda reply: EndTaken(reply.decode()))
