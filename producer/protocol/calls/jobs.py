"""Calls on jobs: submit, claim, write under a fence, end, cancel, retry, forget, sweep."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import read_history
from batchmill.producer.protocol.content import (
    Cipher,
    Content,
    Fingerprint,
    JsonContent,
    KeyIds,
    Place,
    Unopened,
    is_sealed,
    opened,
)
from batchmill.producer.protocol.media import MediaNames
from batchmill.producer.protocol.opening import open_tokens
from batchmill.producer.protocol.payloads import is_reference
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    ForgetReply,
    HeldJob,
    JobState,
    PlanState,
    ReleaseCause,
    ReleaseStatus,
    RetryReply,
    SubmitReply,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.protocol.sweep_counts import RepairCounts, SweepCounts
from batchmill.producer.protocol.token_bytes import decode_tokens, encode_tokens
from batchmill.producer.protocol.used_tokens import UsedTokens

from .call import Argument, Call, named
from .corpora import Corpus
from .job_replies import (
    read_cancel,
    read_forget,
    read_releases,
    read_retry,
    read_submit,
    read_writes,
)
from .new_job import NO_LIMITS, NewJob, QueueLimits

#: Of a result; the text before it has its quotation marks escaped.
_FINISH_REASON = re.compile(r'"finish_reason":"(\w+)"')


def submit(job: NewJob, *, is_adopted: bool = False) -> Call[SubmitReply]:
    """Store a new job. Limits do not apply to an adopted one, which Redis has in its message."""
    fields: dict[str, Argument | None] = {
        "id": job.job_id,
        "v": job.version,
        "model": job.model,
        "queue": job.queue,
        "doc": Content(job.document, Place(job.job_id, "doc")),
        "result_ttl_ms": job.result_ttl_ms,
        "is_adopted": "1" if is_adopted else None,
        "tenant": job.tenant,
        "cost": job.cost,
        "reserved_bytes": job.reserved_bytes,
        "deadline_at_ms": job.deadline_at_ms,
        "ttl_ms": job.ttl_ms,
        "not_before_ms": job.not_before_ms,
        "delay_ms": job.delay_ms,
        "idempotency_key": job.idempotency_key,
        "fingerprint": _fingerprint(job),
        "webhook": job.webhook,
        "webhook_events": job.webhook_events or None,
        "webhook_secret": job.webhook_secret or None,
        "celery_result": "1" if job.celery_result else None,
        "celery_headers": job.celery_headers or None,
        "celery_embed": _follow_ups(job),
        "start_by_ms": job.start_by_ms,
        "message_priority": job.message_priority or None,
        "tags": ",".join(job.tags) or None,
        "max_tokens": job.max_tokens,
        "api_key": job.api_key or None,
        "gateway": job.gateway or None,
        "traceparent": job.traceparent,
        "prefix": Fingerprint(job.prefix, job.tenant) if job.prefix else None,
        "lora": job.lora,
        "media": MediaNames(job.media, job.tenant) if job.media else None,
        "needs": " ".join(job.needs) or None,
        "steering": job.steering,
    }
    if job.limits is not NO_LIMITS:
        fields |= asdict(job.limits)
    if (place := job.batch) is not None:
        fields |= {"batch": place.batch_id, "batch_index": place.index}
        fields |= {"custom_id": place.custom_id or None, "endpoint": place.endpoint or None}

    def read(reply: list[bytes]) -> SubmitReply:
        found = read_submit(reply)
        sent = {each.id for each in job.new_media}
        if found.status is SubmitStatus.NO_MEDIA and job.media[found.media_place] in sent:
            # Redis had no room for what came with the job, or it was deleted in between.
            return SubmitReply(SubmitStatus.FULL, None)
        return found

    return Call(
        "submit",
        named(fields),
        read,
        when_out_of_memory=SubmitReply(SubmitStatus.FULL, None),
        when_unusable=SubmitReply(SubmitStatus.UNUSABLE, None),
        media=job.new_media,
        max_memory_percent=None if is_adopted else job.limits.max_memory_percent,
    )


def claim(
    job_id: str,
    owner: str,
    lease_ms: int,
    identity: str,
    nonce: str,
    session: str = "",
    prefixes: Sequence[str] = (),
    abilities: Sequence[str] = (),
) -> Call[Claim | ClaimRefusal]:
    """Take a queued job under a lease, or find the claim that the same nonce has made.

    With `prefixes`, those that the caller's engine holds, a job of another prefix may be refused as
    `PASSED_OVER`; the list of the session then has an announcement of one that fits.
    """

    def read(reply: list[Any]) -> Claim | ClaimRefusal:
        if reply[0] == b"REFUSED":
            return ClaimRefusal(reply[1].decode())
        _, fence, document, data, numbers, about, must_rewrite = reply
        attempts, alone, deadline, enqueued, started, now, suspect, *others = numbers.split()
        celery_result, retries, made_at = others
        plan_state = about.get(b"plan_state", b"")
        unreadable = next((x.error for x in (document, data) if isinstance(x, Unopened)), None)
        if unreadable is not None:
            document = data = b""
        return Claim(
            job_id=job_id,
            fence=fence.decode(),
            document=document,
            token_ids=decode_tokens(data),
            attempts=int(attempts),
            alone=alone == b"1",
            deadline_at_ms=None if deadline == b"-1" else int(deadline),
            enqueued_at_ms=int(enqueued),
            started_at_ms=int(started),
            claimed_at_ms=int(now),
            suspect=int(suspect),
            celery_result=celery_result == b"1",
            identity=identity,
            retries=int(retries),
            traceparent=about.get(b"traceparent", b"").decode("latin-1") or None,
            history=read_history(about[b"history"]) if b"history" in about else (),
            made_at_ms=int(made_at),
            prefix=about.get(b"prefix", b"").decode(errors="replace"),
            must_rewrite_output=must_rewrite,
            lora=about.get(b"lora", b"").decode("latin-1") or None,
            media=tuple(about.get(b"media", b"").decode("latin-1").split()),
            steering=about.get(b"steering", b"").decode("latin-1") or None,
            plan_state=b"" if isinstance(plan_state, Unopened) else plan_state,
            unreadable=unreadable,
        )

    def opens(reply: list[Any], cipher: Cipher) -> list[Any]:
        if reply[0] == b"REFUSED":
            return reply
        _, fence, document, data, numbers, *rest = reply
        about = _pairs(rest)
        seals = _pairs(about.pop(b"seals", ()))
        tokens = open_tokens(cipher, job_id, data, seals, must_be_sealed=is_sealed(document))
        is_open = bool(cipher.key_ids and data and not seals)
        if not is_reference(document):  # else the claimer reads it on another thread
            document = opened(cipher, document, Place(job_id, "doc"))
        if b"plan_state" in about:
            place = Place(job_id, "plan_state")
            about[b"plan_state"] = opened(cipher, about[b"plan_state"], place)
        return [b"CLAIMED", fence, document, tokens, numbers, about, is_open]

    args = (
        job_id,
        owner,
        lease_ms,
        identity,
        nonce,
        session,
        os.getpid(),
        KeyIds(tuple(abilities)),
    )
    return Call(
        "claim",
        (*args, " ".join(prefixes), *keys.SUPPORTED_VERSIONS),
        read,
        opens=opens,
        leaves_objects=True,
    )


def checkpoint(writes: Sequence[TokenWrite], lease_ms: int) -> Call[list[WriteStatus]]:
    """Append tokens and extend leases, one status for each write in its order."""
    args: list[Argument] = [lease_ms]
    for write in writes:
        # In one argument: redis-py takes several microseconds for each.
        where = f"{write.job_id} {write.fence} {write.identity} {write.position}"
        where += f" {write.text_position} {write.thought_position}"
        args += (where.encode(), _tokens(write))
        for kind, text, position in (
            ("text", write.text, write.text_position),
            ("thoughts", write.thoughts, write.thought_position),
        ):
            args.append(Content(text, Place(write.job_id, f"{kind}:{position}")))
    return Call("checkpoint", args, read_writes)


def save_plans(states: Sequence[PlanState]) -> Call[list[WriteStatus]]:
    """Save the state of plans, one status for each in its order."""
    args: list[Argument] = []
    for each in states:
        args.append(f"{each.job_id} {each.fence} {each.identity}".encode())
        args.append(Content(each.state, Place(each.job_id, "plan_state")))
    return Call("save_plan", args, read_writes)


def renew(held: Sequence[HeldJob], lease_ms: int) -> Call[list[WriteStatus]]:
    """Extend leases, one status for each job in its order."""
    return Call("renew", (lease_ms, *_fences(held)), read_writes)


def release(held: Sequence[HeldJob], cause: ReleaseCause) -> Call[list[ReleaseStatus]]:
    """Give jobs back, one status for each job in its order."""
    return Call("release", (cause.value, *_fences(held)), read_releases)


def hand_over(held: Sequence[HeldJob], taker: str) -> Call[list[ReleaseStatus]]:
    """Give jobs to a session that asked for some, one status for each job in its order."""
    return Call("hand_over", (taker, *_fences(held)), read_releases)


def complete(
    write: TokenWrite,
    state: JobState,
    result: str | None,
    error: str | None,
    used: UsedTokens | None = None,
    retry_in_ms: int | None = None,
    *,
    starts_over: bool = False,
    result_object: bytes = b"",
    corpus: Corpus | None = None,
) -> Call[CompleteStatus]:
    """End a job: last tokens, result or error, terminal state and webhook event in one.

    `used` is what its tenant is charged for; None counts the stored output. With `retry_in_ms`, a
    failed job is tried again after this time instead, from its tokens or from the start, unless it
    was cancelled or its deadline would pass before. With `result_object`, the reference to an
    object that has the result, that is stored instead of it. With `corpus`, later jobs may draft
    tokens from the output.
    """
    args = (
        write.job_id,
        write.fence,
        write.identity,
        state.value,
        result_object or Content(result or "", Place(write.job_id, "result")),
        error or "",
        write.position,
        _tokens(write),
        "" if used is None else " ".join(map(str, used)),
        "" if retry_in_ms is None else retry_in_ms,
        "1" if starts_over else "",
        found[1] if (found := _FINISH_REASON.search(result or "")) else "",
        *(() if corpus is None else (f"{corpus.digest} {corpus.max_jobs}",)),
    )
    return Call("complete", args, lambda reply: CompleteStatus(reply.decode()))


def cancel(job_id: str, *, frees_key: bool = False) -> Call[CancelAnswer]:
    """Cancel a waiting job, or ask the worker of a running one to stop.

    With `frees_key`, a job that this cancels also gives up its idempotency key, in the same moment,
    so that another job may have it.
    """
    return Call("cancel", (job_id, "1") if frees_key else (job_id,), read_cancel)


def retry(job_id: str, limits: QueueLimits) -> Call[RetryReply]:
    """Run a job again that ended without a completion."""
    # The nonce lets a call that the connection repeats after a lost reply find its own retry.
    args: list[Argument] = [job_id, secrets.token_hex(8)]
    for name, value in asdict(limits).items():
        if value is not None:
            args += (name, value)
    return Call("retry", args, read_retry)


def forget(job_id: str) -> Call[ForgetReply]:
    """Remove everything that is stored about a job that has ended."""
    return Call("forget", (job_id,), read_forget)


def sweep(
    limit: int,
    reannounce_grace_ms: int,
    *,
    sweep_interval_ms: int | None = None,
    extension_ms: int | None = None,
    max_letters: int | None = None,
    usage_days: int | None = None,
) -> Call[SweepCounts]:
    """Requeue jobs with lost leases, expire late jobs, repeat lost announcements.

    If no sweep came for several intervals, lapsed leases are extended once by `extension_ms`
    instead, because their holders could not renew them. Both values are given, or neither.
    """
    options = (sweep_interval_ms, extension_ms, max_letters, usage_days)
    args = (limit, reannounce_grace_ms, *(_or_empty(option) for option in options))

    def read(reply: list[Any]) -> SweepCounts:
        return replace(SweepCounts(*reply[:10]), foreign_keys=_read_names(reply[10:]))

    return Call("sweep", args, read)


def repair_store(
    limit: int, *, interval_ms: int | None = None, unserved_ttl_ms: int | None = None
) -> Call[RepairCounts]:
    """Repair what was written or deleted by hand; call it after `sweep`.

    The unfinished jobs are walked and repaired every `interval_ms`; None is never. That walk also
    expires jobs without a deadline whose queue no worker has served for `unserved_ttl_ms`.
    """
    args = (limit, _or_empty(interval_ms), _or_empty(unserved_ttl_ms))

    def read(reply: list[Any]) -> RepairCounts:
        return replace(RepairCounts(*reply[:3]), foreign_keys=_read_names(reply[3:]))

    return Call("repair_store", args, read)


def announce_due(limit: int) -> Call[int]:
    """Announce jobs whose delay is over."""
    return Call("announce_due", (limit,), int)


def position(job_id: str) -> Call[int | None]:
    """Estimate how many jobs of its queue are announced before a waiting one."""
    return Call("position", (job_id,), lambda reply: None if reply is None else int(reply))


def _tokens(write: TokenWrite) -> Content:
    """Return the tokens of a write; a sealed piece is bound to its place in the output."""
    place = Place(write.job_id, f"tokens:{4 * write.position}")
    return Content(encode_tokens(write.token_ids), place)


def _follow_ups(job: NewJob) -> JsonContent | None:
    if not job.celery_embed:
        return None
    return JsonContent(job.celery_embed, Place(job.job_id, "celery_embed"))


def _fingerprint(job: NewJob) -> Fingerprint | str | None:
    if job.fingerprint:
        return Fingerprint(job.fingerprint, job.tenant)
    return "" if job.idempotency_key else None


def _pairs(items: Any) -> dict[bytes, Any]:
    """Return the hash that a script has replied as a list of names and values."""
    return dict(zip(items[::2], items[1::2], strict=True))


def _or_empty(value: int | None) -> Argument:
    return "" if value is None else value


def _read_names(names: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(name.decode(errors="backslashreplace") for name in names)


def _fences(held: Sequence[HeldJob]) -> list[Argument]:
    return [argument for item in held for argument in (item.job_id, item.fence)]
