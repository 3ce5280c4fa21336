"""What the worker and its engine process say to each other.

Plain frozen values, pickled over a socket pair between a process and its own child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """First message to a new engine process: which engine to build."""

    #: "real", or "stub" for a deterministic stand-in without a model.
    kind: str
    model: str
    #: Keyword arguments of `EngineConfig` (real) or `StubConfig` (stub); without `model`.
    options: Mapping[str, Any]
    log_level: str = "INFO"
    log_format: str = "auto"


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Start, or resume, one request."""

    request_id: str
    #: Exactly one of the prompt and the chat is given.
    prompt: str | Sequence[int] | None
    #: Keyword arguments of `Chat`.
    chat: Mapping[str, Any] | None
    #: Keyword arguments of `SamplingParams`, the seed included.
    params: Mapping[str, Any]
    #: Output tokens of earlier attempts.
    resumed_token_ids: Sequence[int] = ()
    #: Lower goes first.
    priority: int = 0
    #: Seconds from its arrival until the engine stops it by itself; None is never.
    deadline_s: float | None = None
    #: It shares KV blocks with requests of the same salt only.
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class AbortRequest:
    """Stop one request; it is answered with a `Finished` unless it had ended before."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SetPaused:
    """Stop or go on stepping. A paused engine keeps its requests and its progress counter."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End after the step that is running."""


@dataclass(frozen=True, slots=True)
class DraftCounts:
    """What prompt lookup came to since the process started."""

    #: Guessed tokens that were computed, and those of them that are part of an output.
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm."""

    #: Names weights, tokenizer, dtype and sampler: tokens of another identity cannot be continued.
    identity: str
    num_blocks: int
    block_size: int
    max_model_len: int
    #: None where prompt lookup is off, here and in each report.
    drafts: DraftCounts | None = None


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The engine cannot be built, for a reason that a retry does not change."""

    message: str


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How full the engine is."""

    num_running: int
    num_waiting: int
    num_free_blocks: int


#: For each token, token ids to log probabilities; None for a prompt's first.
Logprobs = Sequence[Mapping[int, float] | None]


class FinishedCall(NamedTuple):
    """A call of a function; its arguments are a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class FinishedSample:
    """One of several samples of a request, as `Finished` tells of a single one."""

    text: str
    token_ids: Sequence[int]
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None
    entropies: Sequence[float] | None = None
    tool_calls: Sequence[FinishedCall] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's end.

    Attributes:
        text: the whole output, resumed tokens included; `token_ids` likewise.
        finish_reason: `stop`, `length`, `tool_calls`, `abort` or `error`.
        error: what went wrong, where the reason is `error`, or `abort` for a deadline; never prompt
            or output text.
        error_code: the same for machines: `numerical_error`, `out_of_memory`, `no_token_left`,
            `engine_error` or `deadline_exceeded`.
        logprobs: per output token; None where not asked for. `entropies` likewise, in nats.
        samples: all samples where the request asked for several; the first is told of above, too.
    """

    request_id: str
    text: str
    token_ids: Sequence[int]
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    #: Times the engine took its blocks away and computed it again.
    num_preemptions: int = 0
    #: Seconds from its arrival until it was first computed; None where it never was.
    queued_s: float | None = None
    #: Mean seconds between two of its tokens; None before the second.
    inter_token_s: float | None = None
    #: The stop token id or stop string that ended it.
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None
    entropies: Sequence[float] | None = None
    prompt_logprobs: Logprobs | None = None
    tool_calls: Sequence[FinishedCall] = ()
    samples: Sequence[FinishedSample] = ()
    error: str | None = None
    error_code: str | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated, of all samples together."""
        return sum(len(sample.token_ids) for sample in self.samples) or len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request the engine does not take, now or ever."""

    request_id: str
    code: str
    message: str


#: One request's output of one step: request id, token ids, and the text that they made certain. The
#: first of a resumed request begins with the text of the tokens that it was resumed with: what was
#: written of it is compared and completed. There is one for each request in each step, so it is a
#: plain tuple: pickle takes a sixth of the time that it takes for instances of any class.
NewOutput: TypeAlias = tuple[str, Sequence[int], str]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one turn of the engine's loop produced."""

    #: `AddRequest` messages seen since the process started.
    num_adds_seen: int
    load: EngineLoad
    drafts: DraftCounts | None = None
    #: What each request got, where it got any tokens.
    new_outputs: Sequence[NewOutput] = ()
    finished: Sequence[Finished] = field(default_factory=tuple)
    refused: Sequence[Refused] = field(default_factory=tuple)


ToEngine = AddRequest | AbortRequest | SetPaused | Shutdown
FromEngine = Ready | StartFailed | StepReport
