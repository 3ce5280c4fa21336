"""One claimed job: its request, its output so far, and how much of that the record has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from batchmill.producer.job.selection import Selection
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.corpora import Corpus
from batchmill.producer.protocol.calls.spread import Origin
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, ReleaseCause, TokenWrite
from batchmill.producer.tracing.traceparent import trace_fields
from batchmill.worker.engine_host.messages import AddRequest

from .attempt_trace import NO_TRACE, AttemptTrace
from .outcome import TaskHandle
from .retry_rules import RetryRules
from .unsaved_text import UnsavedText

#: A job that was in the engine at this many engine deaths, together with other jobs, runs in small
#: groups. One death is forgiven: a lost worker or device takes good jobs with it.
SUSPECT_FROM = 2
#: Jobs per such group. A larger group clears a large batch in fewer groups, but leaves more jobs to
#: run alone in the end. For the 64 jobs of a full batch, the square root minimizes both together.
SUSPECT_GROUP = 8
#: New tokens that clear a job of suspicion, as in the record (`finish.lua`).
PROGRESS_TOKENS = 64


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """When a job must stop (`time.monotonic()`), and the state in which it then ends."""

    at: float
    state: JobState


class Release(NamedTuple):
    """How a job is given back: why, and to which session of a worker (None: to any)."""

    cause: ReleaseCause
    taker: str | None = None


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A claimed job from its claim to its last write.

    The thread that reads from the engine appends to `token_ids`; the record writer owns everything
    else. Invariant: the record has the first `num_saved` tokens, in the order they have here.
    """

    claim: Claim
    request: AddRequest
    task: TaskHandle
    metadata: Mapping[str, str] = field(default_factory=dict)
    tenant: str = keys.DEFAULT_TENANT
    #: Name of the queue that it waits in when it is given back.
    queue: str = ""
    tags: Sequence[str] = ()
    limit: TimeLimit | None = None
    #: The corpus that learns from its output; None if none does.
    corpus: Corpus | None = None
    #: How one of several samples is selected; None selects none.
    selection: Selection | None = None
    #: Whether the caller asked for the log probabilities of the output, of the prompt.
    reports_logprobs: tuple[bool, bool] = (True, True)
    #: None if nothing is known about the job but its claim.
    retry_rules: RetryRules | None = None
    #: Whether it was taken while its prefix was among those that the engine held.
    claimed_for_prefix: bool = False
    claimed_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    #: When the engine reported its last tokens.
    last_output_at: float | None = None
    #: Since when it has tokens that the record does not have.
    unsaved_since: float | None = None
    #: All output tokens, including those of earlier attempts.
    token_ids: list[int] = field(default_factory=list)
    num_saved: int = 0
    #: The state in which the job is to end, once the engine has been asked to stop it.
    stopping: JobState | None = None
    #: How the job is given back, once the engine has been asked to stop it for that.
    leaving: Release | None = None
    #: The stored tokens once disagreed with ours; the second time the job is dropped.
    had_gap: bool = False
    is_in_engine: bool = False
    #: State of its plan that the record does not have yet.
    plan_state: bytes | None = None
    trace: AttemptTrace = NO_TRACE
    _text: UnsavedText = field(default_factory=UnsavedText)
    _thoughts: UnsavedText = field(default_factory=UnsavedText)

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt; a later attempt is a different request."""
        return self.request.request_id

    @property
    def log_ids(self) -> dict[str, str]:
        """The fields that name the job, and its trace if it has one, in each line of the log."""
        trace_id = self.trace.trace_id
        trace = trace_fields(self.claim.traceparent) if trace_id is None else {"trace_id": trace_id}
        return {"job_id": self.claim.job_id, **trace}

    @property
    def group_limit(self) -> int | None:
        """How many jobs of this kind may be in the engine together; None means any number."""
        if len(self.token_ids) - len(self.claim.token_ids) >= PROGRESS_TOKENS:
            return None
        if self.claim.alone:
            return 1
        return SUSPECT_GROUP if self.claim.suspect >= SUSPECT_FROM else None

    @property
    def waited_s(self) -> float:
        """Seconds since the claim."""
        return time.monotonic() - self.claimed_at

    @property
    def origin(self) -> Origin:
        """What decides whether a pause would hold the job back if it waited."""
        return Origin(self.queue, self.tenant)

    @property
    def held(self) -> HeldJob:
        """Job id and fence, in the form that the store takes."""
        return HeldJob(self.claim.job_id, self.claim.fence)

    @property
    def num_unsaved(self) -> int:
        """Tokens that the record does not have yet."""
        return len(self.token_ids) - self.num_saved

    def receive(self, token_ids: Sequence[int], text: str, thoughts: str = "") -> None:
        """Append tokens from the engine, and the text and the thoughts that they made certain."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if self.unsaved_since is None:
            self.unsaved_since = time.monotonic()
        # The text first: the record writer's thread must not find tokens without their text.
        num_tokens = len(self.token_ids) + len(token_ids)
        if text:
            self._text.append(num_tokens, text)
        if thoughts:
            self._thoughts.append(num_tokens, thoughts)
        self.token_ids.extend(token_ids)

    def unsaved(self) -> TokenWrite:
        """Return the tokens and the text that the record does not have yet, as a write."""
        token_ids = self.token_ids[self.num_saved :]
        num_tokens = self.num_saved + len(token_ids)
        return TokenWrite(
            self.claim.job_id,
            self.claim.fence,
            self.num_saved,
            token_ids,
            self._text.up_to(num_tokens),
            self._text.position,
            self.claim.identity,
            self._thoughts.up_to(num_tokens),
            self._thoughts.position,
        )

    def mark_saved(self, write: TokenWrite) -> None:
        """Note that the record now has the tokens and the text of a write."""
        self.num_saved += len(write.token_ids)
        if not self.num_unsaved:
            self.unsaved_since = None
        self._text.mark_saved(len(write.text))
        self._thoughts.mark_saved(len(write.thoughts))

    def mark_gap(self) -> None:
        """Note that the stored tokens disagree with ours, so that all are sent again."""
        self.had_gap = True
        self.num_saved = 0
