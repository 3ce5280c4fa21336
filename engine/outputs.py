"""What the engine reports about a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class FinishReason(enum.StrEnum):
    """Why a request ended, in OpenAI's words where it has one."""

    #: An end-of-text token, a stop token or a stop string.
    STOP = "stop"
    #: `max_tokens`, or the engine's `max_model_len`.
    LENGTH = "length"
    #: `Engine.abort`, or its deadline passed (then `RequestOutput.error` says so).
    ABORT = "abort"
    #: The request could not go on; `RequestOutput.error` says why.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """Why a request ended without being done; the others of its batch are not affected."""

    #: Machine-readable: `numerical_error`, `out_of_memory`, `deadline_exceeded` or `engine_error`.
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
    #: Mean seconds between two tokens of this run; None before the second.
    inter_token_s: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """One request's news of one step. The last one has `finished` set.

    `token_ids` and `text` are the whole output up to this step. They are put together when they are
    read: a step's work does not grow with what was generated before it.

    Not frozen, because one is made for each request in each step, and a frozen dataclass takes
    three times as long to make. Treat it as read-only all the same.
    """

    request_id: str
    #: Tokens of this step, in order. Tokens that the request was resumed with are never new.
    new_token_ids: list[int]
    #: Text that became certain in this step. Joined over all steps it is `text`.
    new_text: str
    #: None while the request goes on.
    finish_reason: FinishReason | None
    #: The stop token id or stop string that ended it; None at an end-of-text token or a limit.
    stop_reason: int | str | None
    #: What went wrong, where `finish_reason` is `error`, or `abort` for a deadline.
    error: RequestFailure | None
    #: Times and counts, complete once finished.
    metrics: RequestMetrics
    num_prompt_tokens: int
    # Append-only lists of the request, and how much of them this output reports.
    _output_token_ids: list[int] = field(repr=False)
    _num_output_tokens: int = field(repr=False)
    _text_pieces: list[str] = field(repr=False)
    _num_text_pieces: int = field(repr=False)

    @property
    def finished(self) -> bool:
        """Whether this is the request's last output."""
        return self.finish_reason is not None

    @property
    def token_ids(self) -> list[int]:
        """All output tokens so far, resumed ones and the token that ended it included."""
        return self._output_token_ids[: self._num_output_tokens]

    @property
    def text(self) -> str:
        """All text so far, without what may still turn out to be a stop string."""
        return "".join(self._text_pieces[: self._num_text_pieces])

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self._num_output_tokens,
            cached_tokens=self.metrics.num_cached_tokens,
        )
