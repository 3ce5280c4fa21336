"""What the scripts of `jobs.py` reply, as values."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol.pauses import read_pause
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelStatus,
    ForgetReply,
    ForgetStatus,
    JobState,
    ReachedLimit,
    ReleaseStatus,
    RetryReply,
    RetryStatus,
    SubmitReply,
    SubmitStatus,
    WriteStatus,
)


def read_submit(reply: list[bytes]) -> SubmitReply:
    """Return what `submit` has replied."""
    status = SubmitStatus(reply[0].decode())
    if status is SubmitStatus.CLOSED:
        return SubmitReply(status, None, batch_state=reply[1].decode())
    if status is SubmitStatus.FULL:
        reached = ReachedLimit(reply[1].decode(), *map(int, reply[2:5]))
        return SubmitReply(status, None, reached)
    if status is SubmitStatus.PAUSED:
        return SubmitReply(status, None, pause=read_pause(b":".join(reply[1:3]), reply[3]))
    if status is SubmitStatus.TOO_LATE:
        return SubmitReply(status, None)
    if status is SubmitStatus.NO_ADAPTER:
        model, param = (each.decode(errors="replace") for each in reply[2:4])
        return SubmitReply(status, None, adapter_model=model, adapter_param=param)
    if status is SubmitStatus.NO_MEDIA:
        return SubmitReply(status, None, media_place=int(reply[1]))
    return SubmitReply(status, reply[1].decode())


def read_writes(reply: list[bytes]) -> list[WriteStatus]:
    """Return what became of each write."""
    return [WriteStatus(item.decode()) for item in reply]


def read_releases(reply: list[bytes]) -> list[ReleaseStatus]:
    """Return what became of each job that was released."""
    return [ReleaseStatus(item.decode()) for item in reply]


def read_cancel(reply: list[bytes]) -> CancelAnswer:
    """Return what `cancel` has replied."""
    state = JobState(reply[1].decode()) if len(reply) > 1 else None
    return CancelAnswer(CancelStatus(reply[0].decode()), state)


def read_retry(reply: list[Any]) -> RetryReply:
    """Return what `retry` has replied."""
    status = RetryStatus(reply[0].decode())
    if status is RetryStatus.RETRIED:
        return RetryReply(status, run=reply[1])
    if status is RetryStatus.ACTIVE:
        return RetryReply(status, state=JobState(reply[1].decode()))
    if status is RetryStatus.FULL:
        _, name, value, limit, needed, queue, tenant = (part.decode() for part in reply)
        reached = ReachedLimit(name, int(value), int(limit), int(needed))
        return RetryReply(status, reached=reached, queue=queue, tenant=tenant)
    return RetryReply(status)


def read_forget(reply: list[bytes]) -> ForgetReply:
    """Return what `forget` has replied."""
    state = JobState(reply[1].decode()) if len(reply) > 1 else None
    return ForgetReply(ForgetStatus(reply[0].decode()), state)
