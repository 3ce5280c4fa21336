"""The jobs this worker holds, and which of them are on board of the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, TokenWrite
from batchmill.worker.engine_host.messages import AbortRequest, AddRequest, ToEngine

from .delivery import Delivery

#: Engine deaths in company from which on a job runs in small groups. One death is forgiven: a lost
#: worker or device takes good jobs with it.
SUSPECT_FROM = 2
#: Jobs in such a group. Raising it clears a large batch in fewer groups, and leaves more jobs to
#: run alone in the end; the least of both together, for the 64 jobs of a full batch, is its root.
SUSPECT_GROUP = 8


@dataclass(frozen=True, slots=True)
class Limit:
    """When a job must stop (`time.monotonic()`), and the state it then ends in."""

    at: float
    state: JobState


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A claimed job from its claim to its last write.

    `token_ids` grows in the thread that reads from the engine; everything else is the ledger's.
    Invariant: `num_saved` tokens are in the record, in the order they have here.
    """

    claim: Claim
    request: AddRequest
    delivery: Delivery
    metadata: Mapping[str, str] = field(default_factory=dict)
    tenant: str = keys.DEFAULT_TENANT
    tags: Sequence[str] = ()
    limit: Limit | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    #: All output tokens, those of earlier attempts included.
    token_ids: list[int] = field(default_factory=list)
    num_saved: int = 0
    #: Why the engine was asked to stop it: the state it is to end in.
    stopping: JobState | None = None
    #: The stored tokens once disagreed with ours; the second time the job is given up.
    had_gap: bool = False
    is_on_board: bool = False
    #: Pieces of text, each with the number of output tokens that make it certain.
    _text: deque[tuple[int, bytes]] = field(default_factory=deque)
    #: Text that the record does not have yet, and the byte that it begins at.
    _unsaved_text: bytearray = field(default_factory=bytearray)
    _text_position: int = 0

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt: a later attempt is another request."""
        return self.request.request_id

    @property
    def group_limit(self) -> int | None:
        """How many jobs of its like may be on board together; None is any number."""
        if self.claim.alone:
            return 1
        return SUSPECT_GROUP if self.claim.suspect >= SUSPECT_FROM else None

    @property
    def held(self) -> HeldJob:
        """The job as the store wants it named."""
        return HeldJob(self.claim.job_id, self.claim.fence)

    @property
    def num_unsaved(self) -> int:
        """Tokens that the record does not have yet."""
        return len(self.token_ids) - self.num_saved

    def receive(self, token_ids: Sequence[int], text: str) -> None:
        """Append tokens from the engine, and the text that they made certain."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        # The text first: the ledger, in its thread, must not find tokens without theirs.
        if text:
            self._text.append((len(self.token_ids) + len(token_ids), text.encode()))
        self.token_ids.extend(token_ids)

    def unsaved(self) -> TokenWrite:
        """The tokens and the text that the record does not have yet, as a write."""
        token_ids = self.token_ids[self.num_saved :]
        num_tokens = self.num_saved + len(token_ids)
        while self._text and self._text[0][0] <= num_tokens:
            self._unsaved_text += self._text.popleft()[1]
        return TokenWrite(
            self.claim.job_id,
            self.claim.fence,
            self.num_saved,
            token_ids,
            bytes(self._unsaved_text),
            self._text_position,
        )

    def note_saved(self, write: TokenWrite) -> None:
        """The record has what a write brought."""
        self.num_saved += len(write.token_ids)
        self._text_position += len(write.text)
        del self._unsaved_text[: len(write.text)]


class ActiveJobs:
    """Table of active jobs in the order of their claims; the only one who puts jobs on board.

    Invariant: a job that must run alone is on board with no other job beside it; one that was on
    board of two engine deaths, with no more than `SUSPECT_GROUP` of its like. So the cause of two
    deaths among n jobs is found in n / `SUSPECT_GROUP` groups and one group alone, not n alone.
    Jobs that cannot go on board yet are held, first come, first served; there are hardly ever any,
    because intake closes while one is held. Thread-safe: a removal and a start cannot overtake each
    other, so what is removed never reaches the engine later.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        """Bind to the way to the engine; `send` must not block."""
        self._send = send
        self._lock = threading.Lock()
        self._jobs: dict[str, ActiveJob] = {}
        self._held: deque[ActiveJob] = deque()
        self._num_on_board = 0
        # How many jobs may be on board together, because of those that are; None is any number.
        self._group_limit: int | None = None
        self._engine_is_up = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def num_held(self) -> int:
        """Jobs claimed and not on board."""
        return len(self._held)

    @property
    def needs_quiet(self) -> bool:
        """Whether a job that must run alone is held or on board."""
        return self._group_limit == 1 or any(job.claim.alone for job in tuple(self._held))

    def get(self, request_id: str) -> ActiveJob | None:
        """Return the job behind an engine request, or None where it is not ours any more."""
        return self._jobs.get(request_id)

    def find(self, job_id: str) -> ActiveJob | None:
        """Return the active job of an id, or None."""
        return next((job for job in self.snapshot() if job.claim.job_id == job_id), None)

    def snapshot(self) -> list[ActiveJob]:
        """Return all active jobs as they are now."""
        with self._lock:
            return list(self._jobs.values())

    def add(self, job: ActiveJob) -> None:
        """Take a job in, and put it on board if it may go."""
        with self._lock:
            self._jobs[job.request_id] = job
            self._held.append(job)
            self._board()

    def remove(self, job: ActiveJob) -> bool:
        """Forget a job; False where it was forgotten before."""
        with self._lock:
            if self._jobs.pop(job.request_id, None) is None:
                return False
            if job.is_on_board:
                self._leave(job)
            else:
                self._held.remove(job)
            self._board()
            return True

    def abort(self, job: ActiveJob) -> bool:
        """Ask the engine to stop a job; False where it is not on board, so nothing will answer."""
        with self._lock:
            if not job.is_on_board:
                return False
            self._send(AbortRequest(job.request_id))
            return True

    def engine_up(self) -> None:
        """A fresh engine is ready: put on board what is held."""
        with self._lock:
            self._engine_is_up = True
            self._board()

    def engine_down(self) -> tuple[list[ActiveJob], list[ActiveJob]]:
        """The engine is gone: forget all jobs, and return those on board and those held."""
        with self._lock:
            self._engine_is_up = False
            on_board = [job for job in self._jobs.values() if job.is_on_board]
            held = list(self._held)
            for job in on_board:
                self._leave(job)
            self._jobs.clear()
            self._held.clear()
            return on_board, held

    def _board(self) -> None:
        while self._engine_is_up and self._held and self._may_board(self._held[0]):
            job = self._held.popleft()
            job.is_on_board = True
            self._num_on_board += 1
            self._group_limit = job.group_limit
            self._send(job.request)

    def _may_board(self, job: ActiveJob) -> bool:
        """Whether a job's company suits it, and it suits the company."""
        if self._num_on_board == 0:
            return True
        if job.group_limit != self._group_limit:
            return False
        return self._group_limit is None or self._num_on_board < self._group_limit

    def _leave(self, job: ActiveJob) -> None:
        job.is_on_board = False
        self._num_on_board -= 1
        if self._num_on_board == 0:
            self._group_limit = None
