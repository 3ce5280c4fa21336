"""A job's result and status as its worker reports them: output, usage, times and error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

# Unknown fields are ignored: a worker of a later version may add some.
_CONFIG = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


def _is_absent(value: object) -> bool:
    """Return whether a result leaves a field out: unused fields take no room in Redis."""
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
    """The origin of the prompt's KV."""

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
    """The function of a call, and its arguments."""

    model_config = _CONFIG

    name: str
    #: A JSON object, as text.
    arguments: str = Field(repr=False)


class ToolCall(BaseModel):
    """A call of a function, in OpenAI's form."""

    model_config = _CONFIG

    #: For the `tool_call_id` of the tool's message. A job that is restarted makes the same ids.
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Metrics(BaseModel):
    """Times of the job in seconds, and counts of interruptions."""

    model_config = _CONFIG

    #: From submit to the first claim.
    queue_time_s: float | None = None
    #: From the last claim's arrival in the engine until its first step.
    engine_queue_time_s: float | None = None
    #: From the last claim to its first token.
    ttft_s: float | None = None
    #: From the first token of the last claim to the last token.
    generate_time_s: float | None = None
    #: Mean between two tokens of the last claim; None if it had fewer than two.
    inter_token_latency_s: float | None = None
    #: From submit to the end.
    total_time_s: float | None = None
    #: Tokens that an earlier attempt had generated and this one continued from.
    resumed_tokens: int = 0
    #: Times that the engine gave the job's blocks to another and recomputed them.
    preemptions: int = 0


#: Per token, token ids to log probabilities: its own first, then the likeliest, best first.
Logprobs = list[dict[int, float] | None]


class Completion(BaseModel):
    """One sample of a job."""

    model_config = _CONFIG

    #: Number of the sample among the job's `n`, from 0.
    index: int = 0
    text: str = ""
    token_ids: list[int] = Field(default_factory=list, repr=False)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    #: Per token, if the job asked for `logprobs`.
    logprobs: Logprobs | None = Field(default=None, repr=False)
    #: Per token, in nats, if the job asked for `entropy`.
    entropies: list[float] | None = Field(default=None, repr=False)
    #: Calls of the job's `tools`; their markup is not in `text`.
    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    #: Cause, if `finish_reason` is `error`.
    error: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """This sample as an assistant message, for the `messages` of the next job."""
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
    #: `completed`, or another end, with the output so far.
    status: JobState
    #: `stop`: a stop string, a stop token or the end of text; `length`: `max_tokens`;
    #: `tool_calls`: as `stop`, with calls.
    finish_reason: FinishReason | None = None
    #: The stop string or token id that ended it; None for the end of text.
    stop_reason: str | int | None = None
    #: Text of the output. This and the fields around it are those of the first sample.
    text: str = ""
    #: Calls of the job's `tools`; their markup is not in `text`.
    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    #: Per output token, if the job asked for `logprobs`: of the model's own distribution, before
    #: any control.
    logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: Per output token, in nats, if the job asked for `entropy`.
    entropies: list[float] | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: Per prompt token, if the job asked for `prompt_logprobs`; None for the first.
    prompt_logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    #: All samples, if the job asked for more than one; see `completions`.
    samples: list[Completion] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    usage: Usage = Field(default_factory=Usage)
    metrics: Metrics = Field(default_factory=Metrics)
    #: Number of claims, the last one included.
    attempt: int = 1
    worker: str | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    #: Owner of the job.
    tenant: str = keys.DEFAULT_TENANT
    #: Labels of the job.
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
        """The output as an assistant message, for the next turn of the chat."""
        return self.completions[0].message


class JobStatus(BaseModel):
    """The status of a job."""

    model_config = _CONFIG

    id: str
    model: str
    #: Owner of the job, for the fair share.
    tenant: str = keys.DEFAULT_TENANT
    state: JobState
    #: Cancelled while running: it ends at its next checkpoint.
    cancelling: bool = False
    #: Tokens generated and stored so far.
    output_tokens: int = 0
    #: Claims so far; more than one after a worker was lost.
    attempts: int = 0
    #: Number of the run: 1, and one more per retry.
    run: int = 1
    tags: list[str] = Field(default_factory=list)
    worker: str | None = None
    #: Milliseconds of unix time on Redis' clock, as all times below.
    enqueued_at_ms: int
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    deadline_at_ms: int | None = None
    #: Time before which a delayed job does not run; None if it had no delay.
    scheduled_at_ms: int | None = None
    error: JobError | None = None
