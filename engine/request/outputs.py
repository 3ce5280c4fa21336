"""Outputs of a request as the engine reports them: text, tokens, scores, usage, metrics."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from batchmill.engine.text.tool_calls import ToolCall

from .scores import TokenScores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .pooling import PooledStates

#: Output tokens of an earlier run: one list, or one for each of several samples.
ResumedTokens = Sequence[int] | Sequence[Sequence[int]]


class FinishReason(enum.StrEnum):
    """Why a request ended; OpenAI's word if it has one."""

    #: An end-of-text token, a stop token or a stop string.
    STOP = "stop"
    #: `max_tokens`, or the engine's `max_model_len`.
    LENGTH = "length"
    #: As `stop`, and the output has calls of functions.
    TOOL_CALLS = "tool_calls"
    #: `Engine.abort`, or its deadline passed (then `RequestOutput.error` says so).
    ABORT = "abort"
    #: The request could not continue; `RequestOutput.error` says why.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why a request failed; other requests of its batch are not affected."""

    #: Machine-readable: `numerical_error`, `out_of_memory`, `no_token_left` (its own controls),
    #: `structure_too_complex`, `media_failed`, `adapter_unavailable`, `deadline_exceeded` or
    #: `engine_error`.
    code: str
    #: For people; never prompt or output text.
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    #: Tokens of the prompt, and of the negative prompt of a guided request.
    prompt_tokens: int
    #: Tokens generated, resumed ones included.
    completion_tokens: int
    #: Those of the prompts found in the prefix cache when the request was first admitted.
    cached_tokens: int
    #: Those of the completion that are thoughts, once it has ended.
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class RequestMetrics:
    """Times and counts of one request. Shared by its outputs, and complete with the last one."""

    #: `time.monotonic()` when the request was added.
    arrived_at_s: float
    #: Output tokens that the request was resumed with.
    num_resumed_tokens: int = 0
    #: Seconds from arrival until it was first admitted; None before.
    queued_s: float | None = None
    #: Seconds from arrival until its first token of this run; None before.
    first_token_s: float | None = None
    #: Seconds from arrival until its end; None before.
    finished_s: float | None = None
    #: Prompt tokens found in the prefix cache when it was first admitted.
    num_cached_tokens: int = 0
    #: How often it was preempted.
    num_preemptions: int = 0
    #: Mean seconds between two tokens of this run; None before its end, and with fewer than two.
    inter_token_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample of a request: its whole output up to the step that reported it."""

    #: Number of the sample among the request's `n`, from 0.
    index: int
    token_ids: list[int]
    text: str
    #: None while it continues.
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    error: RequestFailure | None
    logprobs: list[dict[int, float]] | None
    entropies: list[float] | None
    #: Calls of the functions that its chat offered; none before it has ended.
    tool_calls: tuple[ToolCall, ...]
    #: Thoughts of a chat, which are not in `text`; "" before it has ended.
    reasoning: str = ""
    #: Their tokens.
    num_reasoning_tokens: int = 0

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of its tokens' log probabilities; None without `logprobs`."""
        return cumulative_logprob(self.token_ids, self.logprobs)


@dataclass(frozen=True, slots=True)
class OutputSource:
    """Data that all outputs of one request share: each shows a beginning of the lists."""

    request_id: str
    prompt_token_ids: list[int]
    #: Only ever appended to, as is `text_pieces`.
    output_token_ids: list[int]
    text_pieces: list[str]
    metrics: RequestMetrics
    scores: TokenScores | None
    pooling: PooledStates | None = None
    #: Name of the key that marks its tokens; None if they are not marked.
    watermark: str | None = None
    #: Thoughts, which are not in the text. Only ever appended to.
    thought_pieces: list[str] = field(default_factory=list)
    #: Tokens of the negative prompt, and what happened to the request that computes it.
    num_negative_tokens: int = 0
    guide_metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """Why a request ended."""

    reason: FinishReason
    #: The stop token id or stop string that ended it; None at an end-of-text token or a limit.
    stop_reason: int | str | None = None
    #: Cause, if the reason is `error`, or `abort` at a deadline.
    error: RequestFailure | None = None
    #: Calls of the functions that its chat offered.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Tokens of the thoughts of a chat.
    num_reasoning_tokens: int = 0


@dataclass(slots=True, repr=False)
class RequestOutput:
    """The progress of one request in one step. The last output has `finished` set.

    `token_ids` and `text` are the whole output up to this step. They are assembled when they are
    read, so a step's work does not grow with the length of the output.

    A request with several samples (`SamplingParams.n`) has one output per step, with all samples in
    `completions`. Everything else but `usage` describes the first sample; only `finish_reason` is
    None until all samples have ended, and `abort`, with its `error`, if any was aborted.

    One object is made per request and step, so it is small: a reference to the request's lists and
    two positions in them. It is not frozen, which would take three times as long; treat it as
    read-only.
    """

    #: None while the request continues.
    finish_reason: FinishReason | None
    _source: OutputSource
    # The request's own end; None while it continues.
    _end: RequestEnd | None
    # Lengths of the lists before this output, and with it.
    _num_old_tokens: int
    _num_tokens: int
    _num_old_pieces: int
    _num_pieces: int
    _num_old_thoughts: int = 0
    _num_thoughts: int = 0
    # Outputs of all samples; empty if there is only one.
    _samples: tuple[RequestOutput, ...] = ()

    def __repr__(self) -> str:
        """Return id, number of tokens and end; no text."""
        return (
            f"RequestOutput(request_id={self.request_id!r}, num_tokens={self._num_tokens}, "
            f"finish_reason={self.finish_reason}, error={self.error})"
        )

    @property
    def request_id(self) -> str:
        """Id that the caller gave the request."""
        return self._source.request_id

    @property
    def new_token_ids(self) -> list[int]:
        """Tokens of this step, in order. Resumed tokens are never new."""
        return self._source.output_token_ids[self._num_old_tokens : self._num_tokens]

    @property
    def new_text(self) -> str:
        """Text that became certain in this step. Joined over all steps it is `text`."""
        return "".join(self._source.text_pieces[self._num_old_pieces : self._num_pieces])

    @property
    def stop_reason(self) -> int | str | None:
        """Stop token id or string that ended it; None at an end-of-text token or a limit."""
        return None if self._end is None else self._end.stop_reason

    @property
    def error(self) -> RequestFailure | None:
        """Cause, if `finish_reason` is `error`, or `abort` at a deadline."""
        return None if self._end is None else self._end.error

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls of the functions that its chat offered; none before it has ended.

        Their markup is not in `text`.
        """
        return () if self._end is None else self._end.tool_calls

    @property
    def reasoning(self) -> str:
        """Thoughts of a chat so far, which are not in `text`."""
        return "".join(self._source.thought_pieces[: self._num_thoughts])

    @property
    def new_reasoning(self) -> str:
        """Thoughts that became certain in this step. Joined over all steps they are `reasoning`."""
        return "".join(self._source.thought_pieces[self._num_old_thoughts : self._num_thoughts])

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the thoughts; 0 before it has ended."""
        return 0 if self._end is None else self._end.num_reasoning_tokens

    @property
    def metrics(self) -> RequestMetrics:
        """Times and counts, complete once finished."""
        return self._source.metrics

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt as it was computed, after truncation."""
        return self._source.prompt_token_ids

    @property
    def finished(self) -> bool:
        """Whether this is the request's last output."""
        return self.finish_reason is not None

    @property
    def token_ids(self) -> list[int]:
        """All output tokens so far, including resumed ones and the token that ended it."""
        return self._source.output_token_ids[: self._num_tokens]

    @property
    def text(self) -> str:
        """All text so far, without the end that may become a stop string."""
        return "".join(self._source.text_pieces[: self._num_pieces])

    @property
    def vector(self) -> NDArray[np.float32] | None:
        """The embedding or the scores of a pooled request that has completed; else None."""
        pooling = self._source.pooling
        return None if pooling is None else pooling.vector

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, and of the negative prompt of a guided request."""
        return len(self.prompt_token_ids) + self._source.num_negative_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Those of `num_prompt_tokens` that were in the prefix cache at the first admission."""
        guide = self._source.guide_metrics
        num_of_guide = 0 if guide is None else guide.num_cached_tokens
        return self.metrics.num_cached_tokens + num_of_guide

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        """Per token of `token_ids`, token ids to log probabilities; None without `logprobs`.

        The token itself comes first, then the likeliest, best first, in the model's own
        distribution, before any control.
        """
        scores = self._source.scores
        if scores is None or scores.num_logprobs is None:
            return None
        return scores.logprobs[: self._num_tokens]

    @property
    def entropies(self) -> list[float] | None:
        """Per token of `token_ids`, the entropy of the model's distribution, in nats."""
        scores = self._source.scores
        if scores is None or not scores.wants_entropy:
            return None
        return scores.entropies[: self._num_tokens]

    @property
    def prompt_logprobs(self) -> list[dict[int, float] | None] | None:
        """Per prompt token, the same as `logprobs` for output tokens; None for the first."""
        scores = self._source.scores
        if scores is None or scores.num_prompt_logprobs is None:
            return None
        return list(scores.prompt_logprobs)

    @property
    def watermark(self) -> str | None:
        """Name of the key that marks its tokens; None if they are not marked."""
        return self._source.watermark

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of all output tokens' log probabilities; None without `logprobs`."""
        return cumulative_logprob(self.token_ids, self.logprobs)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All `SamplingParams.n` samples of the request."""
        return tuple(
            Completion(
                index=index,
                token_ids=each.token_ids,
                text=each.text,
                finish_reason=each.finish_reason,
                stop_reason=each.stop_reason,
                error=each.error,
                logprobs=each.logprobs,
                entropies=each.entropies,
                tool_calls=each.tool_calls,
                reasoning=each.reasoning,
                num_reasoning_tokens=each.num_reasoning_tokens,
            )
            for index, each in enumerate(self._samples or (self,))
        )

    @property
    def usage(self) -> Usage:
        """Token counts so far, summed over all samples."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=sum(each._num_tokens for each in self._samples or (self,)),
            cached_tokens=self.num_cached_tokens,
            reasoning_tokens=sum(each.num_reasoning_tokens for each in self._samples or (self,)),
        )

    @classmethod
    def of_samples(cls, samples: tuple[RequestOutput, ...]) -> RequestOutput:
        """Return one output for the latest ones of all samples; the first has the request's id."""
        first = samples[0]
        if not all(each.finished for each in samples):
            return replace(first, finish_reason=None, _samples=samples)
        for each in samples:
            if each.finish_reason is FinishReason.ABORT and first._end is not None:
                # The reason of the abort, if the first sample had ended by itself before.
                end = replace(first._end, reason=FinishReason.ABORT, error=each.error)
                return replace(first, finish_reason=FinishReason.ABORT, _end=end, _samples=samples)
        return replace(first, _samples=samples)


def cumulative_logprob(
    token_ids: list[int], logprobs: list[dict[int, float]] | None
) -> float | None:
    """Return the sum of the tokens' own log probabilities; None without `logprobs`."""
    if logprobs is None:
        return None
    return sum(each[token_id] for token_id, each in zip(token_ids, logprobs, strict=True))
