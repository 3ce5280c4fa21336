"""What the job store's scripts answer: small frozen values, one enum for each kind of outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class JobState(StrEnum):
    """Where a job is: `queued -> in_progress -> completed | failed | cancelled | expired`."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended: nothing but a retry changes it any more."""
        return self not in (JobState.QUEUED, JobState.IN_PROGRESS)


class SubmitStatus(StrEnum):
    """What became of a submission."""

    CREATED = "CREATED"
    #: The id, or the idempotency key with the same content, is known already; nothing was changed.
    EXISTING = "EXISTING"
    #: The idempotency key belongs to a job with other content; nothing was stored.
    CONFLICT = "CONFLICT"
    #: A limit on what waits is reached, or Redis' memory limit; nothing was stored.
    FULL = "FULL"
    #: The job's batch takes no more lines, or is not there; nothing was stored.
    CLOSED = "CLOSED"
    #: The deadline would pass before the job may run; nothing was stored.
    TOO_LATE = "TOO_LATE"


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit on what waits, and what waits."""

    #: `max_queue_depth`, `max_queued_jobs`, `max_queued_bytes`, `max_queued_tokens`: of the
    #: store; `max_jobs`, `max_bytes`, `max_tokens`: of the job's tenant.
    name: str
    value: int
    limit: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """Answer of `submit` and `adopt`."""

    status: SubmitStatus
    #: The job that now stands for the submission; None where there is none.
    job_id: str | None
    #: What was full; None where nothing was, or Redis itself.
    reached: ReachedLimit | None = None
    #: State of the batch that takes no line; empty where there is no such batch.
    batch_state: str = ""


class ClaimRefusal(StrEnum):
    """Why a claim was refused. None of them is an error: the announcement is simply dropped."""

    UNKNOWN = "unknown"
    TERMINAL = "terminal"
    LEASED = "leased"
    EXPIRED = "expired"
    UNSUPPORTED_VERSION = "unsupported_version"
    #: Its keys hold what no batchmill wrote; the next sweep makes a dead letter of it.
    UNUSABLE = "unusable"
    #: Its delay is not over: it is announced when it is.
    SCHEDULED = "scheduled"


@dataclass(frozen=True, slots=True)
class Claim:
    """A job handed to a worker, under a lease."""

    job_id: str
    #: Goes with every later write; a write with an older fence changes nothing.
    fence: int
    #: The job document, JSON.
    document: bytes
    #: Tokens that earlier attempts generated under the same identity: output tokens from the start.
    token_ids: list[int]
    #: Claims so far, this one included.
    attempts: int
    #: The job was on board of several engine deaths: it must run with no other job beside it.
    alone: bool
    deadline_at_ms: int | None
    enqueued_at_ms: int
    #: First claim of the job.
    started_at_ms: int
    #: Redis' clock at this claim.
    claimed_at_ms: int
    #: Engine deaths that it was on board of, in company.
    suspect: int = 0
    #: A plain Celery task, whose sender may wait for Celery's result.
    celery_result: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A job under a lease, as its worker names it."""

    job_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class TokenWrite:
    """Tokens to append to a job's record."""

    job_id: str
    fence: int
    #: Index of the first token, counted from the start of the output.
    position: int
    token_ids: Sequence[int]
    #: Text that these tokens made certain, UTF-8, for those who read along; written by
    #: `checkpoint` only.
    text: bytes = b""
    #: Byte of the output's text that `text` begins at.
    text_position: int = 0


class WriteStatus(StrEnum):
    """Answer of `checkpoint` and `renew`, for each job."""

    OK = "OK"
    #: The job is not this fence's any more: drop it and write nothing.
    FENCED = "FENCED"
    #: The tokens do not connect to, or disagree with, the stored ones: send from an earlier
    #: position. Only `checkpoint`.
    GAP = "GAP"
    #: Written; and someone cancelled the job: stop it and complete it as cancelled.
    CANCEL_REQUESTED = "CANCEL_REQUESTED"


class ReleaseCause(StrEnum):
    """Why a worker gives a job back."""

    #: An orderly end of the worker: nothing is charged to the job.
    DRAIN = "drain"
    #: The engine died with the job on board: it becomes a suspect or, if it ran alone, is charged
    #: a crash.
    ENGINE_DEATH = "engine_death"


class ReleaseStatus(StrEnum):
    """Answer of `release`, for each job."""

    #: Queued and announced at the head of its queue.
    REQUEUED = "REQUEUED"
    FENCED = "FENCED"
    #: Given up after too many crashes alone: failed with `attempts_exhausted` and a dead letter.
    DEAD = "DEAD"
    #: It had been cancelled while it ran: now it is.
    CANCELLED = "CANCELLED"
    #: Its deadline had passed.
    EXPIRED = "EXPIRED"


class CompleteStatus(StrEnum):
    """Answer of `complete`."""

    OK = "OK"
    #: This fence completed the job before: the answer was lost on the way. As good as OK.
    ALREADY_DONE = "ALREADY_DONE"
    #: The job is not this fence's any more; nothing was changed.
    FENCED = "FENCED"
    #: The last tokens do not connect to the stored ones; nothing was changed. Send from an
    #: earlier position.
    GAP = "GAP"


class CancelStatus(StrEnum):
    """What `cancel` did."""

    CANCELLED = "CANCELLED"
    #: The job runs: its worker stops it at its next checkpoint.
    CANCELLING = "CANCELLING"
    ALREADY_TERMINAL = "ALREADY_TERMINAL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """Answer of `cancel`."""

    status: CancelStatus
    #: The state the job had ended in, where it was too late.
    state: JobState | None = None


class RetryStatus(StrEnum):
    """What `retry` did."""

    RETRIED = "RETRIED"
    UNKNOWN = "UNKNOWN"
    #: It completed: there is nothing to run again.
    COMPLETED = "COMPLETED"
    #: It has not ended.
    ACTIVE = "ACTIVE"
    #: A limit on what waits is reached.
    FULL = "FULL"


@dataclass(frozen=True, slots=True)
class RetryAnswer:
    """Answer of `retry`."""

    status: RetryStatus
    #: With RETRIED: the run that has begun, 2 for the first retry.
    run: int | None = None
    #: With ACTIVE: where it is.
    state: JobState | None = None
    #: With FULL: what is, and the job's queue and tenant.
    reached: ReachedLimit | None = None
    queue: str = ""
    tenant: str = ""


class ForgetStatus(StrEnum):
    """What `forget` did."""

    FORGOTTEN = "FORGOTTEN"
    UNKNOWN = "UNKNOWN"
    #: It has not ended; nothing was changed.
    ACTIVE = "ACTIVE"


@dataclass(frozen=True, slots=True)
class ForgetAnswer:
    """Answer of `forget`."""

    status: ForgetStatus
    #: With ACTIVE: where it is.
    state: JobState | None = None


class DeadLetterKind(StrEnum):
    """What was given up."""

    JOB = "job"
    MESSAGE = "message"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something given up, with the reason and what is needed to try again."""

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


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker serves and how it is, as its heartbeat tells it."""

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
    #: Gauges for people and dashboards (free blocks …). `jobs` (in flight) and `tokens_per_s`
    #: are what progress is estimated from; the others are no contract. `draft_tokens` and
    #: `accepted_tokens` (since its engine started) are there where prompt lookup is on.
    stats: Mapping[str, int | float | str] = field(default_factory=dict)
