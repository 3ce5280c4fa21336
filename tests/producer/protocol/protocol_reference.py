"""Reference models of a job and a batch, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchmill.producer.protocol.replies import CancelStatus, ReleaseCause, ReleaseStatus


@dataclass
class BatchReference:
    """The expected batch; its counts are those of a recount of its jobs."""

    jobs: list[str] = field(default_factory=list)
    is_open: bool = True
    num_refused: int = 0
    is_cancelled: bool = False
    #: How its jobs ended first, or after a retry before the end of the batch.
    counted: dict[str, str] = field(default_factory=dict)
    #: How the batch ended.
    end: str | None = None

    def observe(self, jobs: dict[str, Reference]) -> None:
        """Count the jobs that have ended since the last call."""
        for job_id in self.jobs:
            if job_id in jobs and jobs[job_id].has_ended:
                self.counted.setdefault(job_id, jobs[job_id].state)
        if not self.end and not self.is_open and len(self.counted) == len(self.jobs):
            self.end = "cancelled" if self.is_cancelled else "completed"

    def retry(self, job_id: str) -> None:
        """Wait for a job that runs again, unless the batch has ended or is being cancelled."""
        if not self.end and not self.is_cancelled:
            self.counted.pop(job_id, None)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of lines, completed and failed."""
        num_completed = list(self.counted.values()).count("completed")
        num_failed = len(self.counted) - num_completed + self.num_refused
        return len(self.jobs) + self.num_refused, num_completed, num_failed


def nonce(number: int) -> str:
    """Return the nonce of a job's claim of this number."""
    return f"n{number}"


@dataclass
class Reference:
    """The expected record."""

    webhook: bool
    is_scheduled: bool = False
    tag: str = ""
    tenant: str = "a"
    run: int = 1
    #: Ends of the job so far, by the names of their events.
    ends: list[str] = field(default_factory=list)
    state: str = "queued"
    fence: int = 0
    suspect: int = 0
    crashes: int = 0
    lost_leases: int = 0
    #: Tokens at the last claim.
    num_claimed: int = 0
    alone: bool = False
    restarts: int = 0
    identity: str | None = None
    #: The run of a worker that claimed it.
    session: str = ""
    #: Digest of the beginning of its prompt.
    prefix: str = ""
    num_passed_over: int = 0
    #: The run of a worker that had it when its last time slice ended.
    home: str = ""
    cancel_requested: bool = False
    completed_fence: str | None = None
    #: Fence of the failed attempt after which the job waits, or waited last.
    retry_fence: str | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.state not in ("queued", "in_progress")

    def end(self, state: str) -> None:
        self.state = state
        self.ends.append(state if self.run == 1 else f"{state}_run{self.run}")

    def ask_to_cancel(self) -> CancelStatus:
        if self.has_ended:
            return CancelStatus.ALREADY_TERMINAL
        if self.state == "queued":
            self.end("cancelled")
            return CancelStatus.CANCELLED
        self.cancel_requested = True
        return CancelStatus.CANCELLING

    def retry(self) -> None:
        self.state, self.run, self.is_scheduled = "queued", self.run + 1, False
        self.suspect = self.crashes = self.lost_leases = 0
        self.alone = self.cancel_requested = False
        self.completed_fence = self.retry_fence = None

    def retry_later(self) -> None:
        self.retry_fence = self.written_fence("")
        self.state, self.is_scheduled = "queued", True

    def written_fence(self, error: str) -> str:
        """Return the fence of the last claim, or one with an error."""
        number = self.fence + {"earlier claim": -1, "later claim": 1}.get(error, 0)
        return f"{number}.{'other' if error == 'other claim' else nonce(number)}"

    def holds(self, fence: str) -> bool:
        return self.state == "in_progress" and self.written_fence("") == fence

    def is_held_by(self, session: str) -> bool:
        return self.state == "in_progress" and self.session == session

    def append(self, position: int, new: list[int]) -> bool:
        """Append the new tokens of a write; return False if it leaves a gap or contradicts."""
        if position > len(self.tokens):
            return False
        overlap = self.tokens[position : position + len(new)]
        if overlap != new[: len(overlap)]:
            return False
        self.tokens += new[len(overlap) :]
        return True

    def is_meant(self, tag: str, tenant: str | None) -> bool:
        return self.tag == tag and tenant in (None, self.tenant)

    def lose_lease(self) -> ReleaseStatus:
        self.note_progress()
        self.lost_leases += 1
        self.suspect += self.lost_leases >= 3 and not self.alone
        return self.requeue(fails=self.lost_leases >= 8 and self.alone)

    def note_progress(self) -> None:
        if len(self.tokens) > self.num_claimed:
            self.lost_leases = 0

    def put_back(self, cause: ReleaseCause) -> ReleaseStatus:
        if cause in (ReleaseCause.ENGINE_DEATH, ReleaseCause.ENGINE_STALL):
            self.note_progress()
            self.crashes += self.alone
            self.suspect += not self.alone
        status = self.requeue(fails=self.crashes >= 3)
        if cause is ReleaseCause.SLICED and status is ReleaseStatus.REQUEUED:
            self.home = self.session
        return status

    def requeue(self, *, fails: bool) -> ReleaseStatus:
        if self.cancel_requested:
            self.end("cancelled")
            return ReleaseStatus.CANCELLED
        if fails:
            self.end("failed")
            return ReleaseStatus.DEAD
        self.state = "queued"
        return ReleaseStatus.REQUEUED
