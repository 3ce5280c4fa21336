"""Values of the job scripts: the reply of each one, its statuses, and the jobs and writes it takes.

`outbox.py` has those of the webhook scripts, and `sweep_counts.py` those of the sweep; `calls/`
builds the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .attempts import Attempt
from .content import UnreadableContent
from .pauses import Pause


class JobState(StrEnum):
    """The states of a job: `queued -> in_progress -> completed | failed | cancelled | expired`."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended: only a retry can change it now."""
        return self not in (JobState.QUEUED, JobState.IN_PROGRESS)


class SubmitStatus(StrEnum):
    """Outcome of a submission."""

    CREATED = "CREATED"
    #: The id, or the idempotency key with the same content, is known already; nothing was changed.
    EXISTING = "EXISTING"
    #: The idempotency key belongs to a job with other content; nothing was stored.
    CONFLICT = "CONFLICT"
    #: A limit on waiting jobs, or the memory limit of Redis, is reached; nothing was stored.
    FULL = "FULL"
    #: The job's batch accepts no more lines, or does not exist; nothing was stored.
    CLOSED = "CLOSED"
    #: The deadline would pass before the job may run; nothing was stored.
    TOO_LATE = "TOO_LATE"
    #: The queue or the tenant is paused and refuses jobs; nothing was stored.
    PAUSED = "PAUSED"
    #: Its LoRA adapter or steering vector does not exist, or is one of another model; nothing was
    #: stored.
    NO_ADAPTER = "NO_ADAPTER"
    #: One of its pictures or sounds is not stored for its tenant.
    NO_MEDIA = "NO_MEDIA"
    #: A key that the job needs is of another type; nothing was stored.
    UNUSABLE = "UNUSABLE"


_STORED = (SubmitStatus.CREATED, SubmitStatus.EXISTING)


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit on waiting jobs or events, and the value that reached it."""

    #: `max_queue_depth`, `max_queued_jobs`, `max_queued_bytes`, `max_queued_tokens`,
    #: `max_memory_percent`, `max_outbox_events` or `max_endpoint_events` of the store; `max_jobs`,
    #: `max_bytes` or `max_tokens` of the tenant.
    name: str
    #: With `max_memory_percent`, bytes: in use, promised to unfinished jobs, and for the job.
    value: int
    limit: int
    #: Bytes that the job needs itself; known with `max_memory_percent` only.
    needed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """Reply of `submit`, also for a job that a worker already holds."""

    status: SubmitStatus
    #: The job that stands for the submission; None if there is none.
    job_id: str | None
    #: The limit that is reached; None with FULL if it is the memory limit of Redis.
    reached: ReachedLimit | None = None
    #: With CLOSED: the state of the batch; empty if it does not exist.
    batch_state: str = ""
    #: With PAUSED: the pause that refuses the job.
    pause: Pause | None = None
    #: With NO_ADAPTER: the model that the adapter is for; empty if there is none of the name.
    adapter_model: str = ""
    #: With NO_ADAPTER: the field that names it, `lora` or `steering`.
    adapter_param: str = "lora"
    #: With NO_MEDIA: its place among the media of the job, from 0.
    media_place: int = 0


def submitted_ids(replies: Iterable[object]) -> tuple[str, ...]:
    """Return the jobs that submissions have stored, or found stored."""
    found = (reply for reply in replies if isinstance(reply, SubmitReply))
    ids = (reply.job_id for reply in found if reply.status in _STORED)
    return tuple(job_id for job_id in ids if job_id is not None)


class MediaStatus(StrEnum):
    """Reply of `media_put`."""

    STORED = "STORED"
    #: It would take more of Redis' memory than the limit.
    FULL = "FULL"
    #: The call came too late, and its object was deleted.
    GONE = "GONE"


class PinStatus(StrEnum):
    """Reply of `media_pin`."""

    PINNED = "PINNED"
    #: Another claim has the job.
    FENCED = "FENCED"
    #: The medium is not stored any more.
    GONE = "GONE"


class ClaimRefusal(StrEnum):
    """Why a claim was refused. None of these is an error: the worker drops the announcement."""

    UNKNOWN = "unknown"
    TERMINAL = "terminal"
    LEASED = "leased"
    EXPIRED = "expired"
    UNSUPPORTED_VERSION = "unsupported_version"
    #: The job's keys hold data that batchmill did not write; the next sweep makes it a dead letter.
    UNUSABLE = "unusable"
    #: The job's delay is not over; it is announced when it is.
    SCHEDULED = "scheduled"
    #: Its queue or tenant is paused; it is announced again when the pause ends.
    PAUSED = "paused"
    #: It is sealed with an encryption key that the worker does not have; another may have it.
    MISSING_KEY = "missing_key"
    #: Its document is in an object store, and the worker has none; another may have it.
    NO_PAYLOAD_STORE = "no_payload_store"
    #: It has pictures or sounds, and the worker cannot decode them; another may.
    NO_DECODER = "no_decoder"
    #: It ran in an engine of another identity, whose worker continues it.
    OTHER_ENGINE = "other_engine"
    #: The worker gets another job of the same tenant, whose prefix its engine holds.
    PASSED_OVER = "passed_over"


@dataclass(frozen=True, slots=True)
class Claim:
    """Reply of `claim`: a job that a worker now holds, under a lease."""

    job_id: str
    #: Goes with every later write; a write with the fence of another claim changes nothing. Its
    #: number and its nonce, so that no other claim has it, even if Redis loses its last writes.
    fence: str
    #: The job document, JSON.
    document: bytes
    #: Output tokens that earlier attempts generated under the same identity, from the first one.
    token_ids: list[int]
    #: Claims so far, including this one.
    attempts: int
    #: The job was in the engine at several engine deaths: it must run without other jobs.
    alone: bool
    deadline_at_ms: int | None
    enqueued_at_ms: int
    #: First claim of the job.
    started_at_ms: int
    #: The clock of Redis at this claim.
    claimed_at_ms: int
    #: Engine deaths while the job ran beside others.
    suspect: int = 0
    #: A plain Celery task, whose sender may wait for Celery's result.
    celery_result: bool = False
    #: The claimer's engine: only its tokens may be written under this claim.
    identity: str = ""
    #: Failed attempts of this run that were followed by another one.
    retries: int = 0
    #: Trace of the job, as it was stored: any client may have written it.
    traceparent: str | None = None
    #: Attempts that have ended, oldest first.
    history: tuple[Attempt, ...] = ()
    #: The clock of Redis when the claim was made; a repeated call has a later `claimed_at_ms`.
    made_at_ms: int = 0
    #: Digest of the beginning of its prompt; empty if that is too short to share.
    prefix: str = ""
    #: The output so far was stored without encryption, and the claimer has keys: its first write
    #: begins at the start of the output, so that all of it is sealed.
    must_rewrite_output: bool = False
    #: Digest of its LoRA adapter, as its name was resolved at submit.
    lora: str | None = None
    #: Names of its pictures and sounds, in order; `-` for each whose URL is not fetched yet.
    media: tuple[str, ...] = ()
    #: Digest of its steering vector, likewise.
    steering: str | None = None
    #: State of its plan that an earlier attempt has saved; empty without one.
    plan_state: bytes = b""
    #: Why the document or the output cannot be opened; both are empty then.
    unreadable: UnreadableContent | None = None


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that a worker holds under a lease, as the worker names it in a call."""

    job_id: str
    fence: str


@dataclass(frozen=True, slots=True)
class TokenWrite:
    """Tokens to append to a job's output."""

    job_id: str
    fence: str
    #: Index of the first token, counted from the start of the output.
    position: int
    token_ids: Sequence[int]
    #: Text that these tokens made final, UTF-8, for readers of the stream; written by
    #: `checkpoint` only.
    text: bytes = b""
    #: Index of the first byte of `text`, counted from the start of the output's text.
    text_position: int = 0
    #: Of the engine that computed the tokens. If the claim was made for another one, the write is
    #: FENCED. Empty: not checked.
    identity: str = ""
    #: Thoughts that these tokens made final, as `text`, and the index of their first byte.
    thoughts: bytes = b""
    thought_position: int = 0


@dataclass(frozen=True, slots=True)
class PlanState:
    """State of a job's plan to save, from which another attempt continues."""

    job_id: str
    fence: str
    #: Of the engine that computed it, as of a `TokenWrite`.
    identity: str
    state: bytes


class WriteStatus(StrEnum):
    """Reply of `checkpoint`, `save_plan` and `renew`, per job."""

    OK = "OK"
    #: This fence no longer holds the job: drop it and write nothing.
    FENCED = "FENCED"
    #: The tokens leave a gap after the stored ones or contradict them: send from an earlier
    #: position. `checkpoint` only.
    GAP = "GAP"
    #: Written, but a user has cancelled the job: stop it and complete it as cancelled.
    CANCEL_REQUESTED = "CANCEL_REQUESTED"


class ReleaseCause(StrEnum):
    """Why a worker gives a job back."""

    #: The worker stops in an orderly way: nothing is held against the job.
    DRAIN = "drain"
    #: The engine died before it had the job: nothing is held against it either.
    NOT_STARTED = "not_started"
    #: The engine died while it ran the job: the job becomes a suspect or, if it ran alone, gets a
    #: crash.
    ENGINE_DEATH = "engine_death"
    #: The same, but the worker killed the engine because its loop stood still.
    ENGINE_STALL = "engine_stall"
    #: Another worker has room for it: nothing is held against the job.
    MOVED = "moved"
    #: Its time slice is over, and others wait: it goes behind the waiting jobs of its tenant, and
    #: nothing is held against it.
    SLICED = "sliced"


class ReleaseStatus(StrEnum):
    """Reply of `release`, per job."""

    #: Queued again: announced at the head of its queue, or behind others if it was `SLICED`.
    REQUEUED = "REQUEUED"
    FENCED = "FENCED"
    #: Crashed alone too often: failed with `attempts_exhausted`, and a dead letter.
    DEAD = "DEAD"
    #: A user had cancelled it while it ran.
    CANCELLED = "CANCELLED"
    #: Its deadline had passed.
    EXPIRED = "EXPIRED"


class CompleteStatus(StrEnum):
    """Reply of `complete`."""

    OK = "OK"
    #: This fence completed the job before and the reply was lost. Treat it as OK.
    ALREADY_DONE = "ALREADY_DONE"
    #: The job has not ended: it waits for another attempt.
    RETRYING = "RETRYING"
    #: This fence no longer holds the job; nothing was changed.
    FENCED = "FENCED"
    #: The last tokens leave a gap after the stored ones or contradict them; nothing was changed.
    #: Send from an earlier position.
    GAP = "GAP"


class EndTaken(StrEnum):
    """Reply of `celery_end_take`."""

    #: The caller reports the end to Celery.
    TAKEN = "TAKEN"
    #: Another process reports it, or has done so.
    HELD = "HELD"
    #: There is no such job.
    UNKNOWN = "UNKNOWN"


class CancelStatus(StrEnum):
    """Outcome of `cancel`."""

    CANCELLED = "CANCELLED"
    #: The job is running: its worker stops it at the next checkpoint.
    CANCELLING = "CANCELLING"
    ALREADY_TERMINAL = "ALREADY_TERMINAL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """Reply of `cancel`."""

    status: CancelStatus
    #: With ALREADY_TERMINAL: the state in which the job had ended.
    state: JobState | None = None


@dataclass(frozen=True, slots=True)
class CancelCounts:
    """Reply of `cancel_where`: how many jobs were in which state."""

    #: They waited, and are cancelled now.
    cancelled: int = 0
    #: They are running: their workers stop them at the next checkpoint.
    cancelling: int = 0
    #: They had ended before.
    already_terminal: int = 0

    def plus(self, other: CancelCounts) -> CancelCounts:
        """Return the sum of both."""
        return CancelCounts(
            self.cancelled + other.cancelled,
            self.cancelling + other.cancelling,
            self.already_terminal + other.already_terminal,
        )


class RetryStatus(StrEnum):
    """Outcome of `retry`."""

    RETRIED = "RETRIED"
    UNKNOWN = "UNKNOWN"
    #: The job completed: there is nothing to run again.
    COMPLETED = "COMPLETED"
    #: The job has not ended.
    ACTIVE = "ACTIVE"
    #: A limit on waiting jobs is reached.
    FULL = "FULL"


@dataclass(frozen=True, slots=True)
class RetryReply:
    """Reply of `retry`."""

    status: RetryStatus
    #: With RETRIED: the number of the new run, 2 for the first retry.
    run: int | None = None
    #: With ACTIVE: the job's state.
    state: JobState | None = None
    #: With FULL: the limit, and the job's queue and tenant.
    reached: ReachedLimit | None = None
    queue: str = ""
    tenant: str = ""


class ForgetStatus(StrEnum):
    """Outcome of `forget`."""

    FORGOTTEN = "FORGOTTEN"
    UNKNOWN = "UNKNOWN"
    #: The job has not ended; nothing was changed.
    ACTIVE = "ACTIVE"


@dataclass(frozen=True, slots=True)
class ForgetReply:
    """Reply of `forget`."""

    status: ForgetStatus
    #: With ACTIVE: the job's state.
    state: JobState | None = None


@dataclass(frozen=True, slots=True)
class ForgetCounts:
    """Reply of `forget_where`: how many jobs were erased and kept."""

    forgotten: int = 0
    #: They have not ended, and are kept.
    active: int = 0

    def plus(self, other: ForgetCounts) -> ForgetCounts:
        """Return the sum of both."""
        return ForgetCounts(self.forgotten + other.forgotten, self.active + other.active)
