"""Script calls as values: the arguments of each script and the reading of its answer.

Pure functions without input or output, shared by the synchronous store, the asyncio store and
pipelines.
"""

from __future__ import annotations

import secrets
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from redis.exceptions import OutOfMemoryError

from . import keys
from .outbox import OutboxEntry
from .replies import (
    CancelAnswer,
    CancelStatus,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    ForgetReply,
    ForgetStatus,
    HeldJob,
    JobState,
    ReachedLimit,
    ReleaseCause,
    ReleaseStatus,
    RetryReply,
    RetryStatus,
    SubmitReply,
    SubmitStatus,
    SweepCounts,
    TokenWrite,
    WriteStatus,
)

Answer = TypeVar("Answer")
Parsed = TypeVar("Parsed", covariant=True)
Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One script call: which script, its arguments, and how to read the reply."""

    script: str
    args: Sequence[Argument]
    read: Callable[[Any], Answer]
    #: The answer where Redis is full and refuses to run the script; None makes it an error.
    when_out_of_memory: Answer | None = None


@dataclass(frozen=True, slots=True)
class Read(Generic[Parsed]):
    """One read: the commands to queue on a pipeline, and how to parse their replies."""

    queue: Callable[[Any], None]
    parse: Callable[[list[Any]], Parsed]
    #: The commands see one moment of the data.
    is_atomic: bool = False


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """The line of a batch that a job is."""

    batch_id: str
    #: Place in the input, from 0.
    index: int
    #: The caller's own name for the line; empty for none.
    custom_id: str = ""
    #: OpenAI's path of the answer's shape.
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait before more is refused; None is no limit. See `ProducerSettings`."""

    max_queue_depth: int | None = None
    max_queued_jobs: int | None = None
    max_queued_bytes: int | None = None
    max_queued_tokens: int | None = None


NO_LIMITS = QueueLimits()


@dataclass(frozen=True, slots=True)
class NewJob:
    """What `submit` stores for a job."""

    job_id: str
    model: str
    queue: str
    #: The validated job document, JSON.
    document: str
    #: Time to live of the record after the job has ended, milliseconds.
    result_ttl_ms: int
    webhook: str | None = None
    #: Names of the events to send, with commas; empty for those of the job's end.
    webhook_events: str = ""
    #: Name of the operator's secret to sign with; empty for the default one.
    webhook_secret: str = ""
    idempotency_key: str | None = None
    #: Digest of the content that an idempotency key, or a place in a batch, stands for.
    fingerprint: str = ""
    #: Absolute deadline, milliseconds of unix time.
    deadline_at_ms: int | None = None
    #: Relative deadline, milliseconds from now on Redis' clock; the earlier of the two counts.
    ttl_ms: int | None = None
    #: The batch that is told of the job's end.
    batch: BatchPlace | None = None
    #: A plain Celery task, whose sender may wait for Celery's result.
    celery_result: bool = False
    #: Whose job it is: tenants take turns.
    tenant: str = keys.DEFAULT_TENANT
    #: Tokens that the job may take, prompt and output: an estimate.
    cost: int = 1
    #: The job waits until then, milliseconds of unix time.
    not_before_ms: int | None = None
    #: The job waits for so long, milliseconds on Redis' clock; the later of the two counts.
    delay_ms: int | None = None
    #: Limits on what waits, at which no more is taken; None is no limit.
    limits: QueueLimits = NO_LIMITS
    #: Labels to find it by.
    tags: tuple[str, ...] = ()
    #: Most tokens it generates; None where that is not known.
    max_tokens: int | None = None


def read_reply(call: Call[Answer], reply: Any) -> Answer:
    """Return the answer in a reply, which may be an error of the server.

    Raises:
        redis.exceptions.ResponseError: the reply is an error, and no answer stands for it.
    """
    if isinstance(reply, OutOfMemoryError) and call.when_out_of_memory is not None:
        return call.when_out_of_memory
    if isinstance(reply, Exception):
        raise reply
    return call.read(reply)


def encode_tokens(token_ids: Sequence[int]) -> bytes:
    """Return token ids as uint32 little-endian bytes.

    Raises:
        OverflowError: an id is negative or above 2**32 - 1.
    """
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def decode_tokens(data: bytes) -> list[int]:
    """Return the token ids in uint32 little-endian bytes."""
    packed = array("I")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def submit(job: NewJob, *, announce: bool = True) -> Call[SubmitReply]:
    """Store a new job; `announce` puts its message on the queue as well.

    A job that is not announced is in a worker's hands already: no queue can be too full for it.
    """
    fields: dict[str, Argument | None] = {
        "id": job.job_id,
        "v": keys.PROTOCOL_VERSION,
        "model": job.model,
        "queue": job.queue,
        "doc": job.document,
        "result_ttl_ms": job.result_ttl_ms,
        "announce": "1" if announce else None,
        "tenant": job.tenant,
        "cost": job.cost,
        "deadline_at_ms": job.deadline_at_ms,
        "ttl_ms": job.ttl_ms,
        "not_before_ms": job.not_before_ms,
        "delay_ms": job.delay_ms,
        "idempotency_key": job.idempotency_key,
        "fingerprint": job.fingerprint if job.idempotency_key else job.fingerprint or None,
        "webhook": job.webhook,
        "webhook_events": job.webhook_events or None,
        "webhook_secret": job.webhook_secret or None,
        "celery_result": "1" if job.celery_result else None,
        "tags": ",".join(job.tags) or None,
        "max_tokens": job.max_tokens,
    }
    if job.limits is not NO_LIMITS:
        fields |= asdict(job.limits)
    if (place := job.batch) is not None:
        fields |= {"batch": place.batch_id, "batch_index": place.index}
        fields |= {"custom_id": place.custom_id or None, "endpoint": place.endpoint or None}
    return Call("submit", named(fields), _read_submit, SubmitReply(SubmitStatus.FULL, None))


def named(fields: Mapping[str, Argument | None]) -> list[Argument]:
    """Return names and values in turn, as scripts with many arguments take them."""
    return [item for name, value in fields.items() if value is not None for item in (name, value)]


def claim(job_id: str, owner: str, lease_ms: int, identity: str) -> Call[Claim | ClaimRefusal]:
    """Take a queued job under a lease."""

    def read(reply: list[Any]) -> Claim | ClaimRefusal:
        if reply[0] == b"REFUSED":
            return ClaimRefusal(reply[1].decode())
        _, fence, document, data, attempts, alone, deadline, *rest = reply
        enqueued, started, now, suspect, celery_result = rest
        return Claim(
            job_id=job_id,
            fence=fence,
            document=document,
            token_ids=decode_tokens(data),
            attempts=attempts,
            alone=alone == 1,
            deadline_at_ms=None if deadline == b"" else deadline,
            enqueued_at_ms=enqueued,
            started_at_ms=started,
            claimed_at_ms=now,
            suspect=suspect,
            celery_result=celery_result == 1,
        )

    # The nonce lets a call that the connection repeats after a lost answer find its own claim.
    nonce = secrets.token_hex(8)
    args = (job_id, owner, lease_ms, identity, nonce, *keys.SUPPORTED_VERSIONS)
    return Call("claim", args, read)


def checkpoint(writes: Sequence[TokenWrite], lease_ms: int) -> Call[list[WriteStatus]]:
    """Append tokens and extend leases, one status for each write in its order."""
    args: list[Argument] = [lease_ms]
    for write in writes:
        args += (write.job_id, write.fence, write.position, encode_tokens(write.token_ids))
        args += (write.text_position, write.text)
    return Call("checkpoint", args, _read_writes)


def renew(held: Sequence[HeldJob], lease_ms: int) -> Call[list[WriteStatus]]:
    """Extend leases, one status for each job in its order."""
    return Call("renew", (lease_ms, *_fences(held)), _read_writes)


def release(held: Sequence[HeldJob], cause: ReleaseCause) -> Call[list[ReleaseStatus]]:
    """Give jobs back, one status for each job in its order."""
    return Call("release", (cause.value, *_fences(held)), _read_releases)


def complete(
    write: TokenWrite,
    state: JobState,
    result: str | None,
    error: str | None,
    num_tokens: int | None = None,
) -> Call[CompleteStatus]:
    """End a job: last tokens, result or error, terminal state and webhook event in one.

    `num_tokens` is what it cost, prompt and output; None counts the stored output.
    """
    args = (
        write.job_id,
        write.fence,
        state.value,
        result or "",
        error or "",
        write.position,
        encode_tokens(write.token_ids),
        "" if num_tokens is None else num_tokens,
    )
    return Call("complete", args, lambda reply: CompleteStatus(reply.decode()))


def cancel(job_id: str) -> Call[CancelAnswer]:
    """Cancel a waiting job, or ask the worker of a running one to stop."""
    return Call("cancel", (job_id,), _read_cancel)


def retry(job_id: str, limits: QueueLimits) -> Call[RetryReply]:
    """Run a job again that ended without a completion."""
    # The nonce lets a call that the connection repeats after a lost answer find its own retry.
    args: list[Argument] = [job_id, secrets.token_hex(8)]
    for name, value in asdict(limits).items():
        if value is not None:
            args += (name, value)
    return Call("retry", args, _read_retry)


def forget(job_id: str) -> Call[ForgetReply]:
    """Remove all that is kept of a job that has ended."""
    return Call("forget", (job_id,), _read_forget)


def sweep(limit: int, reannounce_grace_ms: int) -> Call[SweepCounts]:
    """Put back lost leases, expire late jobs, announce again what was lost."""
    return Call("sweep", (limit, reannounce_grace_ms), lambda reply: SweepCounts(*reply))


def announce_due(limit: int) -> Call[int]:
    """Announce jobs whose delay is over."""
    return Call("announce_due", (limit,), int)


def position(job_id: str) -> Call[int | None]:
    """Estimate how many jobs of its queue are announced before a waiting one."""
    return Call("position", (job_id,), lambda reply: None if reply is None else int(reply))


def outbox_claim(owner: str, limit: int, lease_ms: int) -> Call[list[OutboxEntry]]:
    """Take webhook events that are due, under a lease."""
    return Call("outbox_claim", (owner, limit, lease_ms), _read_outbox)


def _fences(held: Sequence[HeldJob]) -> list[Argument]:
    return [argument for item in held for argument in (item.job_id, item.fence)]


def _read_submit(reply: list[bytes]) -> SubmitReply:
    status = SubmitStatus(reply[0].decode())
    if status is SubmitStatus.CLOSED:
        return SubmitReply(status, None, batch_state=reply[1].decode())
    if status is SubmitStatus.FULL:
        reached = ReachedLimit(reply[1].decode(), int(reply[2]), int(reply[3]))
        return SubmitReply(status, None, reached)
    if status is SubmitStatus.TOO_LATE:
        return SubmitReply(status, None)
    return SubmitReply(status, reply[1].decode())


def _read_writes(reply: list[bytes]) -> list[WriteStatus]:
    return [WriteStatus(item.decode()) for item in reply]


def _read_releases(reply: list[bytes]) -> list[ReleaseStatus]:
    return [ReleaseStatus(item.decode()) for item in reply]


def _read_cancel(reply: list[bytes]) -> CancelAnswer:
    state = JobState(reply[1].decode()) if len(reply) > 1 else None
    return CancelAnswer(CancelStatus(reply[0].decode()), state)


def _read_retry(reply: list[Any]) -> RetryReply:
    status = RetryStatus(reply[0].decode())
    if status is RetryStatus.RETRIED:
        return RetryReply(status, run=reply[1])
    if status is RetryStatus.ACTIVE:
        return RetryReply(status, state=JobState(reply[1].decode()))
    if status is RetryStatus.FULL:
        _, name, value, limit, queue, tenant = (part.decode() for part in reply)
        reached = ReachedLimit(name, int(value), int(limit))
        return RetryReply(status, reached=reached, queue=queue, tenant=tenant)
    return RetryReply(status)


def _read_forget(reply: list[bytes]) -> ForgetReply:
    state = JobState(reply[1].decode()) if len(reply) > 1 else None
    return ForgetReply(ForgetStatus(reply[0].decode()), state)


def _read_outbox(reply: list[list[Any]]) -> list[OutboxEntry]:
    return [
        OutboxEntry(
            event_id=event_id.decode(),
            type=kind.decode(),
            job_id=job_id.decode(),
            url=url.decode(),
            attempt=attempt,
            fence=fence,
            created_at_ms=created_at_ms,
            body=body or None,
            secret_name=secret.decode(),
            num_tokens=int(num_tokens) if num_tokens else None,
        )
        for (
            event_id,
            kind,
            job_id,
            url,
            attempt,
            fence,
            created_at_ms,
            body,
            secret,
            num_tokens,
        ) in reply
    ]
