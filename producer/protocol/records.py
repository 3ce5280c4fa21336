"""Records as Python values: jobs, dead letters and heartbeats, and how each is read from Redis.

`record_schema.py` describes the same job record for readers in other languages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from . import keys
from .attempts import Attempt, read_history
from .content import Unopened, UnreadableContent
from .replies import JobState

Fields = Mapping[bytes, bytes]
#: Gauges of a heartbeat outside of these bounds, except 0, were not written by a worker.
_LEAST_GAUGE = 1e-6
_MOST_GAUGE = 1e12


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job's record, without its tokens and text."""

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
    #: End of the job's delay; None if it had none.
    not_before_ms: int | None
    tenant: str
    #: Number of the last claim.
    fence: int
    owner: str | None
    attempts: int
    suspect: int
    alone: bool
    crashes: int
    #: How often the output was discarded because the weights or the sampler had changed.
    restarts: int
    identity: str | None
    cancel_requested: bool
    result: bytes | None
    error: bytes | None
    tags: tuple[str, ...] = ()
    #: 1, plus one per retry.
    run: int = 1
    #: The sender of a plain Celery task may wait for Celery's result.
    celery_result: bool = False
    #: JSON of a plain Celery task's place in a workflow and of what follows; None without them.
    celery_headers: bytes | None = None
    celery_embed: bytes | None = None
    #: Attempts that have ended, oldest first; without those in the middle of a long history.
    history: tuple[Attempt, ...] = ()
    #: Random name of the last claim; None before the first one and after a retry.
    claim_nonce: str | None = None
    #: Why the document or the result cannot be opened; what cannot is empty or None then.
    unreadable: UnreadableContent | None = None


class DeadLetterKind(StrEnum):
    """The kind of thing that was given up."""

    JOB = "job"
    MESSAGE = "message"
    WEBHOOK = "webhook"
    #: A letter with fields that batchmill did not write: it can only be dropped.
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job, message or webhook event that was given up, with the reason."""

    #: The job's id, the event's id, or `dead_<n>` for a message.
    id: str
    kind: DeadLetterKind
    #: A code: `attempts_exhausted`, `malformed`, `exhausted`, `disabled` …
    reason: str
    #: A job's document, a message as it was received, or the last error of a delivery.
    payload: bytes
    #: The worker, the queue or the URL.
    source: str
    at_ms: int
    #: Of a job: its attempts, oldest first.
    history: tuple[Attempt, ...] = ()
    #: Why the payload cannot be opened; it is empty then.
    unreadable: UnreadableContent | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's heartbeat: what it serves, and its state."""

    name: str
    model: str
    identity: str
    queues: tuple[str, ...]
    #: Prompt and output tokens that one request may have together.
    max_model_len: int
    max_num_seqs: int
    started_at_ms: int
    #: `starting`, `ready`, `draining`.
    state: str
    versions: tuple[int, ...]
    #: This run of the worker; empty in the heartbeats of older versions.
    session: str = ""
    #: Kinds of job that it serves; those of older versions only generate.
    kinds: tuple[str, ...] = ("generate",)
    #: Digests of the LoRA adapters in memory.
    adapters: tuple[str, ...] = ()
    #: Kinds of media that its jobs may have (`image`, `audio`); None in the heartbeats of older
    #: versions.
    media: tuple[str, ...] | None = None
    #: Extras that are not installed, and without which it leaves jobs that its model could run.
    lacks: tuple[str, ...] = ()
    #: Gauges for people and dashboards (free blocks …). Progress estimates use `jobs` (in flight)
    #: and `tokens_per_s`; the others may change. `draft_tokens` and `accepted_tokens` (since the
    #: engine started) are present if there are draft tokens.
    stats: Mapping[str, int | float | str] = field(default_factory=dict)


def read_job(fields: Fields) -> JobRecord | None:
    """Return the job in the fields of its hash; None if there are none."""
    if not fields:
        return None
    fields, unreadable = _without_unopened(fields)
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
        celery_result=fields.get(b"celery_result") == b"1",
        celery_headers=fields.get(b"celery_headers"),
        celery_embed=fields.get(b"celery_embed"),
        history=read_history(fields.get(b"history")),
        claim_nonce=_text(fields, b"claim_nonce"),
        unreadable=unreadable,
    )


def read_state(value: Any) -> JobState | None:
    """Return the state in the `state` field of a record; None if there is none that is known."""
    try:
        return None if value is None else JobState(value.decode())
    except ValueError:
        return None


def read_dead_letter(letter_id: str | bytes, fields: Fields) -> DeadLetter | None:
    """Return the dead letter in the fields of its hash; None if there are none."""
    if not fields:
        return None
    text = letter_id if isinstance(letter_id, str) else letter_id.decode(errors="backslashreplace")
    fields, unreadable = _without_unopened(fields)
    try:
        return DeadLetter(
            id=text,
            kind=DeadLetterKind(fields[b"kind"].decode()),
            reason=fields[b"reason"].decode(errors="replace"),
            payload=fields.get(b"payload", b"") if unreadable else fields[b"payload"],
            source=fields[b"source"].decode(errors="replace"),
            at_ms=int(fields[b"at_ms"]),
            history=read_history(fields.get(b"history")),
            unreadable=unreadable,
        )
    except (KeyError, ValueError):
        return DeadLetter(text, DeadLetterKind.UNUSABLE, "unusable_letter", b"", "", 0)


def write_worker(info: WorkerInfo) -> str:
    """Return a heartbeat as JSON."""
    return json.dumps(asdict(info), separators=(",", ":"))


def read_worker(text: bytes) -> WorkerInfo | None:
    """Return the heartbeat in its JSON, without the fields that later versions added.

    None if the text is malformed: any client of Redis may have written it, and the heartbeats of
    the other workers still count.
    """
    try:
        data = json.loads(text)
        known = {name: data[name] for name in WorkerInfo.__dataclass_fields__ if name in data}
        known["queues"] = tuple(known["queues"])
        known["versions"] = tuple(known["versions"])
        known["kinds"] = tuple(known.get("kinds", ("generate",)))
        known["adapters"] = tuple(known.get("adapters", ()))
        known["media"] = None if known.get("media") is None else tuple(known["media"])
        known["lacks"] = tuple(known.get("lacks", ()))
        known["stats"] = _gauges(known.get("stats") or {})
        info = WorkerInfo(**known)
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None
    texts = (info.name, info.model, info.state, info.session, *info.queues, *info.kinds)
    texts += (*info.adapters, *(info.media or ()), *info.lacks)
    numbers = (info.max_model_len, info.max_num_seqs, info.started_at_ms)
    are_texts = all(isinstance(text, str) for text in texts)
    are_numbers = all(type(number) is int and 0 <= number < 1 << 53 for number in numbers)
    return info if are_texts and are_numbers else None


def _gauges(stats: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the gauges that a worker can have written.

    A forged one, such as a speed of 1e-300 tokens per second, would make what is computed of it
    infinite, and its readers fail.
    """
    return {
        name: value
        for name, value in stats.items()
        if (name == "dtype" and isinstance(value, str))
        or (type(value) in (int, float) and (value == 0 or _LEAST_GAUGE <= value <= _MOST_GAUGE))
    }


def _without_unopened(fields: Mapping[bytes, Any]) -> tuple[Fields, UnreadableContent | None]:
    """Return the fields that could be opened, and why the others could not."""
    kept = {name: value for name, value in fields.items() if not isinstance(value, Unopened)}
    errors = (value.error for value in fields.values() if isinstance(value, Unopened))
    return kept, next(errors, None)


def _text(fields: Fields, name: bytes) -> str | None:
    value = fields.get(name)
    return None if value is None else value.decode()


def _number(fields: Fields, name: bytes) -> int | None:
    value = fields.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None  # forged: the scripts make the job a dead letter, and a reader continues
