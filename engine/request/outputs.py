"""What the engine reports about a request."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchmill.engine.text.tool_calls import ToolCall

from .scores import TokenScores

#: Output tokens of an earlier run: one list, or one for each of several samples.
ResumedTokens = Sequence[int] | Sequence[Sequence[int]]


class FinishReason(enum.StrEnum):
    """Why a request ended, in OpenAI's words where it has one."""

    #: An end-of-text token, a stop token or a stop string.
    STOP = "stop"
    #: `max_tokens`, or the engine's `max_model_len`.
    LENGTH = "length"
    #: It would have been `stop`, and there are calls of functions.
    TOOL_CALLS = "tool_calls"
    #: `Engine.abort`, or its deadline passed (then `RequestOutput.error` says so).
    ABORT = "abort"
    #: The request could not go on; `RequestOutput.error` says why.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why a request ended without being done; the others of its batch are not affected."""

    #: Machine-readable: `numerical_error`, `out_of_memory`, `no_token_left` (its own controls),
    #: `deadline_exceeded` or `engine_error`.
    code: str
    #: For people; never prompt or output text.
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    #: Tokens of the prompt.
    prompt_tokens: int
    #: Tokens generated, resumed ones included.
    completion_tokens: int
    #: Tokens of the prompt that came from the prefix cache when the request was first admitted.
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class RequestMetrics:
    """Times and counts of one request. Shared by its outputs, and complete with the last one."""

    #: `time.monotonic()` when the request was added.
    arrived_at_s: float
    #: Output tokens that the request came with.
    num_resumed_tokens: int = 0
    #: Seconds from arrival until it was first admitted; None before.
    queued_s: float | None = None
    #: Seconds from arrival until its first token of this run; None before.
    first_token_s: float | None = None
    #: Seconds from arrival until its end; None before.
    finished_s: float | None = None
    #: Prompt tokens found in the prefix cache when it was first admitted.
    num_cached_tokens: int = 0
    #: How often its blocks were given to others.
    num_preemptions: int = 0
    #: Mean seconds between two tokens of this run; None before its end, and with fewer than two.
    inter_token_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample of a request, whole up to the step that reported it."""

    #: Which of the request's `n` samples it is, from 0.
    index: int
    token_ids: list[int]
    text: str
    #: None while it goes on.
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    error: RequestFailure | None
    logprobs: list[dict[int, float]] | None
    entropies: list[float] | None
    #: Calls of the functions that its chat offered; none before it has ended.
    tool_calls: tuple[ToolCall, ...]

    @property
    def cumulative_logprob(self) -> float | None:
        """Log probability of all its tokens together; None where `logprobs` were not asked for."""
        return cumulative_logprob(self.token_ids, self.logprobs)


@dataclass(frozen=True, slots=True)
class OutputSource:
    """What all outputs of one request share: each shows the beginnings of the lists."""

    request_id: str
    prompt_token_ids: list[int]
    #: Appended to, never changed otherwise; so is `text_pieces`.
    output_token_ids: list[int]
    text_pieces: list[str]
    metrics: RequestMetrics
    scores: TokenScores | None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """Why a request ended."""

    reason: FinishReason
    #: The stop token id or stop string that ended it; None at an end-of-text token or a limit.
    stop_reason: int | str | None = None
    #: What went wrong, where the reason is `error`, or `abort` for a deadline.
    error: RequestFailure | None = None
    #: Calls of the functions that its chat offered.
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(slots=True, repr=False)
class RequestOutput:
    """One request's news of one step. The last one has `finished` set.

    `token_ids` and `text` are the whole output up to this step. Everything is put together when it
    is read: a step's work does not grow with what was generated before it.

    Of a request with several samples (`SamplingParams.n`) there is one output a step, in which
    `completions` has them all; everything else but `usage` tells of the first, except that
    `finish_reason` is None until all of them have ended, and `abort`, with that one's `error`,
    where any was aborted.

    One is made for each request in each step, so it is small: where the request is, and two marks
    in its lists. Not frozen, for that takes three times as long; treat it as read-only all the
    same.
    """

    #: None while the request goes on.
    finish_reason: FinishReason | None
    _source: OutputSource
    # The request's own end; None while it goes on.
    _end: RequestEnd | None
    # How much of the lists was reported before this output, and with it.
    _num_old_tokens: int
    _num_tokens: int
    _num_old_pieces: int
    _num_pieces: int
    # All samples' own outputs; none where this is the only one.
    _samples: tuple[RequestOutput, ...] = ()

    def __repr__(self) -> str:
        """Which request, how far, and why it ended; no text."""
        return (
            f"RequestOutput(request_id={self.request_id!r}, num_tokens={self._num_tokens}, "
            f"finish_reason={self.finish_reason}, error={self.error})"
        )

    @property
    def request_id(self) -> str:
        """The caller's name for it."""
        return self._source.request_id

    @property
    def new_token_ids(self) -> list[int]:
        """Tokens of this step, in order. Tokens that the request was resumed with are never new."""
        return self._source.output_token_ids[self._num_old_tokens : self._num_tokens]

    @property
    def new_text(self) -> str:
        """Text that became certain in this step. Joined over all steps it is `text`."""
        return "".join(self._source.text_pieces[self._num_old_pieces : self._num_pieces])

    @property
    def stop_reason(self) -> int | str | None:
        """What ended it: a stop token id or string; None at an end-of-text token or a limit."""
        return None if self._end is None else self._end.stop_reason

    @property
    def error(self) -> RequestFailure | None:
        """What went wrong, where `finish_reason` is `error`, or `abort` for a deadline."""
        return None if self._end is None else self._end.error

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls of the functions that its chat offered; none before it has ended.

        What they are made of is not in `text`.
        """
        return () if self._end is None else self._end.tool_calls

    @property
    def metrics(self) -> RequestMetrics:
        """Times and counts, complete once finished."""
        return self._source.metrics

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt as it was computed, truncated where that was asked for."""
        return self._source.prompt_token_ids

    @property
    def finished(self) -> bool:
        """Whether this is the request's last output."""
        return self.finish_reason is not None

    @property
    def token_ids(self) -> list[int]:
        """All output tokens so far, resumed ones and the token that ended it included."""
        return self._source.output_token_ids[: self._num_tokens]

    @property
    def text(self) -> str:
        """All text so far, without what may still turn out to be a stop string."""
        return "".join(self._source.text_pieces[: self._num_pieces])

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def logprobs(self) -> list[dict[int, float]] | None:
        """For each of `token_ids`, token ids to log probabilities; None without `logprobs`.

        Its own first, then the likeliest, best first; of the model's own distribution, before any
        control.
        """
        scores = self._source.scores
        if scores is None or scores.num_logprobs is None:
            return None
        return scores.logprobs[: self._num_tokens]

    @property
    def entropies(self) -> list[float] | None:
        """For each of `token_ids`, the entropy of the model's distribution there, in nats."""
        scores = self._source.scores
        if scores is None or not scores.wants_entropy:
            return None
        return scores.entropies[: self._num_tokens]

    @property
    def prompt_logprobs(self) -> list[dict[int, float] | None] | None:
        """For each prompt token what `logprobs` has for output tokens; None for the first."""
        scores = self._source.scores
        if scores is None or scores.num_prompt_logprobs is None:
            return None
        return list(scores.prompt_logprobs)

    @property
    def cumulative_logprob(self) -> float | None:
        """Log probability of all output tokens together; None without `logprobs`."""
        return cumulative_logprob(self.token_ids, self.logprobs)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The request's samples, `SamplingParams.n` of them."""
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
            )
            for index, each in enumerate(self._samples or (self,))
        )

    @property
    def usage(self) -> Usage:
        """Token counts so far, of all samples together."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=sum(each._num_tokens for each in self._samples or (self,)),
            cached_tokens=self.metrics.num_cached_tokens,
        )

    @classmethod
    def of_samples(cls, samples: tuple[RequestOutput, ...]) -> RequestOutput:
        """One output of all samples' latest ones; the first has the request's own id."""
        first = samples[0]
        if not all(each.finished for each in samples):
            return replace(first, finish_reason=None, _samples=samples)
        for each in samples:
            if each.finish_reason is FinishReason.ABORT and first._end is not None:
                # Why the request was cut, where the first one had ended by itself before.
                end = replace(first._end, reason=FinishReason.ABORT, error=each.error)
                return replace(first, finish_reason=FinishReason.ABORT, _end=end, _samples=samples)
        return replace(first, _samples=samples)


def cumulative_logprob(
    token_ids: list[int], logprobs: list[dict[int, float]] | None
) -> float | None:
    """Sum of the tokens' own log probabilities; None where there are none."""
    if logprobs is None:
        return None
    return sum(each[token_id] for token_id, each in zip(token_ids, logprobs, strict=True))
