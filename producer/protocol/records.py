"""Reading what Redis stores: records, events, dead letters and heartbeats into their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import keys
from .replies import DeadLetter, DeadLetterKind, JobState, WorkerInfo

Fields = Mapping[bytes, bytes]


def read_job(fields: Fields) -> JobRecord | None:
    """Return the job in the fields of its hash, or None where there is none."""
    if not fields:
        return None
    return JobRecord(
        id=_text(fields, b"id") or "",
        version=_number(fields, b"v") or 0,
        model=_text(fields, b"model") or "",
        queue=_text(fields, b"queue") or "",
        state=JobState(fields[b"state"].decode()),
        document=fields.get(b"doc", b""),
        webhook=_text(fields, b"webhook"),
        enqueued_at_ms=_number(fields, b"enqueued_at_ms") or 0,
        announced_at_ms=_number(fields, b"announced_at_ms") or 0,
        started_at_ms=_number(fields, b"started_at_ms"),
        finished_at_ms=_number(fields, b"finished_at_ms"),
        deadline_at_ms=_number(fields, b"deadline_at_ms"),
        not_before_ms=_number(fields, b"not_before_ms"),
        tenant=_text(fields, b"tenant") or keys.DEFAULT_TENANT,
        fence=_number(fields, b"fence") or 0,
        owner=_text(fields, b"owner"),
        attempts=_number(fields, b"attempts") or 0,
        suspect=_number(fields, b"suspect") or 0,
        alone=fields.get(b"alone") == b"1",
        crashes=_number(fields, b"crashes") or 0,
        restarts=_number(fields, b"restarts") or 0,
        identity=_text(fields, b"identity"),
        cancel_requested=fields.get(b"cancel_requested") == b"1",
        result=fields.get(b"result"),
        error=fields.get(b"error"),
        tags=tuple(tag for tag in (_text(fields, b"tags") or "").split(",") if tag),
        run=_number(fields, b"run") or 1,
    )


def read_state(value: Any) -> JobState | None:
    """Return the state in the field of a record, or None where there is none."""
    return None if value is None else JobState(value.decode())


def read_dead_letter(fields: Fields) -> DeadLetter | None:
    """Return the dead letter in the fields of its hash, or None where there is none."""
    if not fields:
        return None
    return DeadLetter(
        id=fields[b"id"].decode(),
        kind=DeadLetterKind(fields[b"kind"].decode()),
        reason=fields[b"reason"].decode(errors="replace"),
        payload=fields[b"payload"],
        source=fields[b"source"].decode(errors="replace"),
        at_ms=int(fields[b"at_ms"]),
    )


def write_worker(info: WorkerInfo) -> str:
    """Return a heartbeat as JSON."""
    return json.dumps(asdict(info), separators=(",", ":"))


def read_worker(text: bytes) -> WorkerInfo | None:
    """Return the heartbeat in its JSON; fields of later versions are left out.

    None where no worker wrote it: anybody who reaches Redis may have, and the others still count.
    """
    try:
        data = json.loads(text)
        known = {name: data[name] for name in WorkerInfo.__dataclass_fields__ if name in data}
        known["queues"] = tuple(known["queues"])
        known["versions"] = tuple(known["versions"])
        info = WorkerInfo(**known)
        texts = (info.name, info.model, info.state, *info.queues)
        return info if all(isinstance(text, str) for text in texts) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _text(fields: Fields, name: bytes) -> str | None:
    value = fields.get(name)
    return None if value is None else value.decode()


def _number(fields: Fields, name: bytes) -> int | None:
    value = fields.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None  # forged by hand: the scripts make a dead letter of it, and a reader goes on


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its record tells it (without its tokens)."""

    id: str
    version: int
    model: str
    queue: str
    state: JobState
    document: bytes
    webhook: str | None
    enqueued_at_ms: int
    announced_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    deadline_at_ms: int | None
    #: The job's delay ends then; None where it had none.
    not_before_ms: int | None
    tenant: str
    fence: int
    owner: str | None
    attempts: int
    suspect: int
    alone: bool
    crashes: int
    #: Times the tokens so far were discarded because the weights or the sampler had changed.
    restarts: int
    identity: str | None
    cancel_requested: bool
    result: bytes | None
    error: bytes | None
    tags: tuple[str, ...] = ()
    #: 1, and one more for each retry.
    run: int = 1
