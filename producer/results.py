"""The job as its worker reports it: state, output, usage and error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

# Fields that a later version adds are left out by this one, so that producers may be older than
# workers.
_CONFIG = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


def _is_absent(value: object) -> bool:
    """Whether a result leaves a field out: what was not asked for takes no room in Redis."""
    return value is None or value == []


FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


class JobError(BaseModel):
    """Why a job ended without a completion."""

    model_config = _CONFIG

    #: `invalid_request`, `context_length_exceeded`, `deadline_exceeded`, `cancelled`,
    #: `engine_error`, `numerical_error`, `out_of_memory`, `attempts_exhausted` …
    code: str
    #: For people. Never holds prompt or output text.
    message: str
    #: Whether the same job, submitted again, may succeed.
    retryable: bool = False


class PromptTokensDetails(BaseModel):
    """Where the prompt's keys and values came from."""

    model_config = _CONFIG

    #: Prompt tokens found in the prefix cache.
    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens, counted as OpenAI does."""

    model_config = _CONFIG

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)


class CalledFunction(BaseModel):
    """Which function, and with what."""

    model_config = _CONFIG

    name: str
    #: A JSON object, as text.
    arguments: str = Field(repr=False)


class ToolCall(BaseModel):
    """A call of a function, as OpenAI has it."""

    model_config = _CONFIG

    #: For the answer's `tool_call_id`. A job that had to start again makes the same ids.
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Metrics(BaseModel):
    """How long it took, in seconds, and what happened on the way."""

    model_config = _CONFIG

    #: From submit to the first claim.
    queue_time_s: float | None = None
    #: From the last claim's arrival in the engine until it was first computed.
    engine_queue_time_s: float | None = None
    #: From the last claim to its first token.
    ttft_s: float | None = None
    #: From the first token of the last claim to the last token.
    generate_time_s: float | None = None
    #: Mean from one token of the last claim to the next; None where it had fewer than two.
    inter_token_latency_s: float | None = None
    #: From submit to the end.
    total_time_s: float | None = None
    #: Tokens that an earlier attempt had generated and this one went on from.
    resumed_tokens: int = 0
    #: Times the engine took the job's blocks away for another and computed it again.
    preemptions: int = 0


#: For each token, token ids to log probabilities: its own first, then the likeliest, best first.
Logprobs = list[dict[int, float] | None]


class Completion(BaseModel):
    """One sample of a job."""

    model_config = _CONFIG

    #: Which of the job's `n` samples it is, from 0.
    index: int = 0
    text: str = ""
    token_ids: list[int] = Field(default_factory=list, repr=False)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    #: For each token, where the job asked for `logprobs`.
    logprobs: Logprobs | None = Field(default=None, repr=False)
    #: For each token, in nats, where the job asked for `entropy`.
    entropies: list[float] | None = Field(default=None, repr=False)
    #: Calls of the job's `tools`; what they are made of is not in `text`.
    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    #: What went wrong, where `finish_reason` is `error`.
    error: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """It as a message, to go on with the chat: `messages` of the next job take it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
            message["content"] = self.text or None
        return message


class JobResult(BaseModel):
    """How a job ended, with its output."""

    model_config = _CONFIG

    id: str
    model: str
    #: `completed`; or how else it ended, with the output so far.
    status: JobState
    #: `stop`: a stop string, a stop token or the end of text; `length`: `max_tokens`;
    #: `tool_calls`: as `stop`, with calls.
    finish_reason: FinishReason | None = None
    #: The stop string or token id that ended it; None for the end of text.
    stop_reason: str | int | None = None
    #: Of the first sample, where there are several; so are the fields around it.
    text: str = ""
    #: Calls of the job's `tools`; what they are made of is not in `text`.
    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    #: For each output token, where the job asked for `logprobs`: of the model's own distribution,
    #: before any control.
    logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: For each output token, in nats, where the job asked for `entropy`.
    entropies: list[float] | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: For each prompt token, where the job asked for `prompt_logprobs`; None for the first.
    prompt_logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: All samples, where the job asked for more than one; see `completions`.
    samples: list[Completion] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    usage: Usage = Field(default_factory=Usage)
    metrics: Metrics = Field(default_factory=Metrics)
    #: Claims it took, the last one included.
    attempt: int = 1
    worker: str | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    #: Whose job it was.
    tenant: str = keys.DEFAULT_TENANT
    #: Its labels.
    tags: list[str] = Field(default_factory=list)
    #: The generated token ids. Kept in the record's own token string, so not part of the JSON.
    token_ids: list[int] = Field(default_factory=list, exclude=True, repr=False)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The job's samples, `n` of them."""
        if self.samples:
            return tuple(self.samples)
        only = Completion(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=self.logprobs,
            entropies=self.entropies,
            tool_calls=self.tool_calls,
            error=None if self.error is None else self.error.message,
        )
        return (only,)

    @property
    def message(self) -> dict[str, Any]:
        """The output as a message, to go on with the chat."""
        return self.completions[0].message


class JobStatus(BaseModel):
    """Where a job is."""

    model_config = _CONFIG

    id: str
    model: str
    #: Whose job it is, for the fair order.
    tenant: str = keys.DEFAULT_TENANT
    state: JobState
    #: Cancelled while running: it ends at its next checkpoint.
    cancelling: bool = False
    #: Tokens generated so far, as far as they are safely stored.
    output_tokens: int = 0
    #: Claims so far; more than one after a worker was lost.
    attempts: int = 0
    #: 1, and one more for each retry.
    run: int = 1
    tags: list[str] = Field(default_factory=list)
    worker: str | None = None
    #: Milliseconds of unix time on Redis' clock, as all below.
    enqueued_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    deadline_at_ms: int | None = None
    #: A delayed job runs no earlier; None where it had no delay.
    scheduled_at_ms: int | None = None
    error: JobError | None = None
