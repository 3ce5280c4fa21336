"""A job as Redis keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from .answers import JobState


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
