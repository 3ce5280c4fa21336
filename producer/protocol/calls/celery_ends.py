"""Calls that report the ends of plain Celery tasks and send what follows, each only once."""

from __future__ import annotations

from batchmill.producer.protocol.replies import EndTaken

from .call import Call


def take_all(*, limit: int, grace_ms: int, lease_ms: int, session: str) -> Call[list[str]]:
    """Take ends that are `grace_ms` old and have not been reported."""
    return Call(
        "celery_ends_take",
        (limit, grace_ms, lease_ms, session),
        lambda reply: [job_id.decode(errors="replace") for job_id in reply],
    )


def take(job_id: str, *, lease_ms: int, session: str) -> Call[EndTaken]:
    """Take the end of one job."""
    arguments = (job_id, lease_ms, session)
    return Call("celery_end_take", arguments, lambda reply: EndTaken(reply.decode()))


def send_task(key: str, message: str, *, sending: str, ttl_ms: int) -> Call[bool]:
    """Push a task's message onto a list, unless this sending of it was done before."""
    return Call("task_send", (key, message, sending, ttl_ms), lambda reply: reply == 1)
