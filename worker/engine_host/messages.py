"""The messages between the worker and its engine process.

Plain frozen values, pickled over a socket pair between a process and its own child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from batchmill.engine.contract.media import Media
from batchmill.engine.contract.steering import SteeringSpec


class _Message:
    """Pickled as a call of its class, which takes a third of the time of dataclasses' own way."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        kind = type(self)
        return kind, tuple([getattr(self, name) for name in kind.__match_args__])


@dataclass(frozen=True, slots=True)
class EngineSpec(_Message):
    """First message to a new engine process: which engine to build."""

    #: "real", or "stub" for a deterministic stand-in without a model.
    kind: str
    model: str
    #: Keyword arguments of `EngineConfig` (real) or `StubConfig` (stub); without `model`.
    options: Mapping[str, Any]
    #: The engine computes no further than this and a step beyond what is saved, tokens per request.
    checkpoint_tokens: int
    log_level: str = "INFO"
    log_format: str = "auto"


@dataclass(frozen=True, slots=True)
class AddRequest(_Message):
    """Start or resume one request."""

    request_id: str
    #: Exactly one of `prompt` and `chat` is set.
    prompt: str | Sequence[int] | None
    #: Keyword arguments of `Chat`.
    chat: Mapping[str, Any] | None
    #: Keyword arguments of `SamplingParams`, the seed included.
    params: Mapping[str, Any]
    #: Output tokens of earlier attempts.
    resumed_token_ids: Sequence[int] = ()
    #: A lower number goes first.
    priority: int = 0
    #: Seconds after its arrival at which the engine stops it by itself; None means never.
    deadline_s: float | None = None
    #: It shares KV blocks only with requests that have the same salt.
    cache_salt: str | None = None
    #: Digest of its LoRA adapter.
    lora: str | None = None
    #: What is added to its hidden states.
    steering: SteeringSpec | None = None
    #: Field of the job that asks for a plan (`decision` …), and its content; None for text alone.
    section: str | None = None
    section_fields: Mapping[str, Any] = field(default_factory=dict)
    #: Decoded pictures and sounds, one for each placeholder of the chat, in its order.
    media: Sequence[Media] = ()
    #: State of its plan that an earlier attempt has saved; empty without one.
    plan_state: bytes = b""
    #: Name of the outputs that it may take draft tokens from, as in `SetDraftCorpus`.
    draft_corpus: str | None = None


@dataclass(frozen=True, slots=True)
class SetDraftCorpus(_Message):
    """Replace the outputs that requests with this `draft_corpus` take draft tokens from."""

    name: str
    #: Token ids of each; empty forgets the corpus.
    outputs: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class AbortRequest(_Message):
    """Stop one request. A `Finished` follows unless the request had ended before."""

    request_id: str


@dataclass(frozen=True, slots=True)
class SetPaused(_Message):
    """Pause or continue steps. A paused engine keeps its requests, and its loop still moves."""

    paused: bool


@dataclass(frozen=True, slots=True)
class TokensSaved(_Message):
    """The tokens of all reports up to a number are saved: the engine may compute further ones."""

    report_number: int


@dataclass(frozen=True, slots=True)
class Shutdown(_Message):
    """End after the current step."""


@dataclass(frozen=True, slots=True)
class DraftCounts(_Message):
    """Counts of draft tokens since the process started."""

    #: Draft tokens that were computed, and those of them that were accepted.
    num_draft_tokens: int
    num_accepted_tokens: int
    #: The same two numbers by source: `structure`, `corpus`, `prompt`.
    by_source: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MediaCounts(_Message):
    """Counts of pictures and sounds since the process started."""

    #: Items whose features were computed, and those whose features were in memory.
    num_encoded: int = 0
    num_found: int = 0
    #: Runs of the tower, and the seconds that they took.
    num_runs: int = 0
    run_time_s: float = 0.0
    #: Memory that features take now.
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OffloadCounts(_Message):
    """Counts of KV blocks in host memory since the process started."""

    #: Blocks copied to the host and back, and those that the host gave up.
    num_stored: int = 0
    num_restored: int = 0
    num_evicted: int = 0
    #: Evicted blocks that were not copied, because computing them again is faster.
    num_not_stored: int = 0
    #: Blocks that the host has now, and room for.
    num_held: int = 0
    num_host_blocks: int = 0
    #: Bytes of one block on each rank.
    block_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ready(_Message):
    """The model is loaded and warm."""

    #: Identifies weights, tokenizer, dtype and sampler. Tokens of another identity cannot be
    #: continued.
    identity: str
    num_blocks: int
    block_size: int
    max_model_len: int
    #: Steps that are computed beyond those that it has reported.
    num_steps_ahead: int = 0
    #: Number format of weights and activations; None for the stub, which has none.
    dtype: str | None = None
    #: Ranks that compute the model together.
    num_ranks: int = 1
    #: None if prompt lookup is off and there were no draft tokens, here and in each report.
    drafts: DraftCounts | None = None
    #: Kinds of job that it serves.
    kinds: Sequence[str] = ("generate",)
    #: Kinds of media that its model takes.
    media: Sequence[str] = ()
    #: Rate of the sounds that it takes; None if it takes none, or any.
    sample_rate_hz: int | None = None


@dataclass(frozen=True, slots=True)
class StartFailed(_Message):
    """The engine cannot be built."""

    message: str
    #: Whether another start may work, as it may once another program has freed memory.
    may_retry: bool = False


@dataclass(frozen=True, slots=True)
class EngineLoad(_Message):
    """How full the engine is."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    #: Digests of the LoRA adapters in memory.
    adapters: Sequence[str] = ()


class EngineWork(NamedTuple):
    """What the engine computed since its last report."""

    #: Requests, tokens and seconds of each step.
    steps: Sequence[tuple[int, int, float]] = ()
    #: Times that a request lost its KV blocks to others.
    num_preemptions: int = 0


#: For each token, token ids to log probabilities; None for a prompt's first token.
Logprobs = Sequence[Mapping[int, float] | None]


@dataclass(frozen=True, slots=True)
class LogprobDetails(_Message):
    """Data that readers of log probabilities need besides them.

    Attributes:
        num_top: likeliest tokens that were asked for per output token; None for none at all.
        token_bytes: of every token that has a log probability, and of the echoed ones.
        echoed_token_ids: the prompt's tokens, if its text begins the output's; else None.
        asked_token_ids: tokens that were asked for by their ids.
    """

    num_top: int | None
    token_bytes: Mapping[int, bytes]
    echoed_token_ids: Sequence[int] | None
    asked_token_ids: Sequence[int] = ()


class FinishedCall(NamedTuple):
    """A function call; its arguments are a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class FinishedSample(_Message):
    """One of several samples of a request; the fields are those of `Finished`."""

    text: str
    token_ids: Sequence[int]
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None
    entropies: Sequence[float] | None = None
    tool_calls: Sequence[FinishedCall] = ()
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Finished(_Message):
    """A request's end.

    Attributes:
        text: the whole output, resumed tokens included; `token_ids` likewise.
        finish_reason: `stop`, `length`, `tool_calls`, `abort` or `error`.
        error: the message if the reason is `error`, or `abort` because of a deadline; never prompt
            or output text.
        error_code: the same for machines: `numerical_error`, `out_of_memory`, `no_token_left`,
            `structure_too_complex`, `engine_error` or `deadline_exceeded`.
        logprobs: per output token; None unless requested. `entropies` likewise, in nats.
        samples: all samples, if the request asked for several; the other fields repeat the first.
    """

    request_id: str
    text: str
    token_ids: Sequence[int]
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    #: Times that the engine preempted it and computed it again.
    num_preemptions: int = 0
    #: Seconds from its arrival until it was first computed; None if it never was.
    queued_s: float | None = None
    #: Seconds from its arrival until its first token of this attempt; None without one.
    first_token_s: float | None = None
    #: Seconds from its arrival until its end.
    finished_s: float | None = None
    #: Mean seconds between two of its tokens; None before the second token.
    inter_token_s: float | None = None
    #: The stop token id or stop string that ended it.
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None
    entropies: Sequence[float] | None = None
    prompt_logprobs: Logprobs | None = None
    #: None without any log probability.
    logprob_details: LogprobDetails | None = None
    tool_calls: Sequence[FinishedCall] = ()
    #: Whether one of the operator's keys marked the output.
    is_watermarked: bool = False
    #: Thoughts of a chat, which are not in `text`, and the number of their tokens.
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    samples: Sequence[FinishedSample] = ()
    error: str | None = None
    error_code: str | None = None
    #: Sections of the result by their names, of JSON values: what plans computed.
    sections: Mapping[str, Any] = field(default_factory=dict)
    #: Tokens that were generated for them, besides the output.
    num_section_tokens: int = 0

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens of all samples together, and those of plans."""
        num_tokens = sum(len(each.token_ids) for each in self.samples) or len(self.token_ids)
        return num_tokens + self.num_section_tokens

    @property
    def num_thought_tokens(self) -> int:
        """Those of all samples together that are thoughts."""
        return sum(each.num_reasoning_tokens for each in self.samples or (self,))


@dataclass(frozen=True, slots=True)
class Refused(_Message):
    """A request that the engine can never run."""

    request_id: str
    code: str
    message: str


#: One request's output of one step: request id, token ids, and the text and the thoughts that they
#: made certain. The first output of a resumed request begins with those of its resumed tokens, so
#: that what is stored can be compared and completed. There is one per request and step, so it is a
#: plain tuple: pickle takes a sixth of the time that it takes for instances of a class.
NewOutput: TypeAlias = tuple[str, Sequence[int], str, str]


@dataclass(frozen=True, slots=True)
class StepReport(_Message):
    """The output of one iteration of the engine's loop."""

    #: Reports since the process started, with this one.
    number: int
    #: `AddRequest` messages seen since the process started.
    num_adds_seen: int
    load: EngineLoad
    drafts: DraftCounts | None = None
    #: None if the model takes neither pictures nor sounds.
    media: MediaCounts | None = None
    #: None if the engine keeps no KV in host memory.
    offload: OffloadCounts | None = None
    #: When it was made, seconds of `time.monotonic()`, which all processes of a machine share.
    at_s: float = 0.0
    work: EngineWork = field(default_factory=EngineWork)
    #: New output of each request that got any tokens.
    new_outputs: Sequence[NewOutput] = ()
    finished: Sequence[Finished] = field(default_factory=tuple)
    #: State of plans to save, by request.
    plan_states: Mapping[str, bytes] = field(default_factory=dict)
    refused: Sequence[Refused] = field(default_factory=tuple)
    #: Whether the engine had to wait before it, because too many tokens were not saved.
    has_waited: bool = False


ToEngine = AddRequest | SetDraftCorpus | AbortRequest | SetPaused | TokensSaved | Shutdown
FromEngine = Ready | StartFailed | StepReport
