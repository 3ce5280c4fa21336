"""A job's result and status as its worker reports them: output, usage, times and error."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer.moments import moment
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_sections import Answer, BeamSearchResult, DecisionResult, Explanation
from batchmill.producer.vector_sections import EmbeddingResult, ScoringResult

# Unknown fields are ignored: a worker of a later version may add some.
_CONFIG = ConfigDict(
    extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
)


def _is_absent(value: object) -> bool:
    """Return whether a result leaves a field out: unused fields take no room in Redis."""
    return value is None or value == []


FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


class JobError(BaseModel):
    """Why a job ended without a completion."""

    model_config = _CONFIG

    code: str
    """Stable code of the error; docs/reference/errors.md lists all."""

    message: str
    """For people. Never holds prompt or output text."""

    retryable: bool = False
    """Whether the same job, submitted again, may succeed."""


class PromptTokensDetails(BaseModel):
    """The origin of the prompt's KV."""

    model_config = _CONFIG

    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""


class CompletionTokensDetails(BaseModel):
    """The parts of the output."""

    model_config = _CONFIG

    reasoning_tokens: int = 0
    """Tokens of thoughts, with those of their markup."""


class Usage(BaseModel):
    """Tokens, counted as OpenAI does."""

    model_config = _CONFIG

    prompt_tokens: int = 0
    """Tokens of the prompt."""

    completion_tokens: int = 0
    """Generated tokens, of all samples."""

    total_tokens: int = 0
    """Their sum."""

    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)
    """Where the prompt's KV came from."""

    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, exclude_if=_is_absent
    )
    """The parts of the output, if it has thoughts."""


class CalledFunction(BaseModel):
    """The function of a call, and its arguments."""

    model_config = _CONFIG

    name: str
    """Name of the function."""

    arguments: str = Field(repr=False)
    """A JSON object, as text."""


class ToolCall(BaseModel):
    """A call of a function, in OpenAI's form."""

    model_config = _CONFIG

    id: str
    """For the `tool_call_id` of the tool's message. A job that is restarted makes the same ids."""

    type: Literal["function"] = "function"
    """Kind of the tool."""

    function: CalledFunction
    """The function and its arguments."""


class Metrics(BaseModel):
    """Times of the job in seconds, and counts of interruptions."""

    model_config = _CONFIG

    queue_time_s: float | None = None
    """From submit to the first claim."""

    engine_queue_time_s: float | None = None
    """From the last claim's arrival in the engine until its first step."""

    ttft_s: float | None = None
    """From the last claim to its first token."""

    generate_time_s: float | None = None
    """From the first token of the last claim to the last token."""

    inter_token_latency_s: float | None = None
    """Mean between two tokens of the last claim; None if it had fewer than two."""

    total_time_s: float | None = None
    """From submit to the end."""

    resumed_tokens: int = 0
    """Tokens that an earlier attempt had generated and this one continued from."""

    preemptions: int = 0
    """Times that the engine gave the job's blocks to another and recomputed them."""


#: Per token, token ids to log probabilities: its own first, then the likeliest, best first.
Logprobs = list[dict[int, float] | None]


class LogprobDetails(BaseModel):
    """Data that readers of log probabilities need besides them."""

    model_config = ConfigDict(**_CONFIG, ser_json_bytes="base64", val_json_bytes="base64")

    num_top: int | None = None
    """Likeliest tokens that the job asked for per output token; None if it asked for none."""

    token_bytes: dict[int, bytes] = Field(default_factory=dict, repr=False)
    """Bytes of each token that has a log probability, by its id; base64 in JSON. A token may be
    a part of a character, and a special token has the bytes of its name."""

    echoed_token_ids: list[int] | None = Field(default=None, repr=False)
    """Tokens of the prompt, if the job asked for `echo`."""

    asked_token_ids: list[int] = Field(default_factory=list, exclude_if=_is_absent)
    """Tokens that the job asked for by `logprob_token_ids`."""


class Completion(BaseModel):
    """One sample of a job."""

    model_config = _CONFIG

    index: int = 0
    """Number of the sample among the job's `n`, from 0."""

    text: str = ""
    """Text of the sample."""

    token_ids: list[int] = Field(default_factory=list, repr=False)
    """Its token ids."""

    finish_reason: FinishReason | None = None
    """Why it ended; see `JobResult.finish_reason`."""

    stop_reason: str | int | None = None
    """The stop string or token id that ended it; None for the end of text."""

    logprobs: Logprobs | None = Field(default=None, repr=False)
    """Per token, if the job asked for `logprobs`."""

    entropies: list[float] | None = Field(default=None, repr=False)
    """Per token, in nats, if the job asked for `entropy`."""

    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    """Calls of the job's `tools`; their markup is not in `text`."""

    reasoning_content: str | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """What the model thought before its answer; not in `text`, nor in a stream."""

    error: str | None = None
    """Cause, if `finish_reason` is `error`."""

    @property
    def message(self) -> dict[str, Any]:
        """This sample as an assistant message, for the `messages` of the next job."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
            message["content"] = self.text or None
        return message


class SelectedSample(BaseModel):
    """Which of a job's samples was selected, and why."""

    model_config = _CONFIG

    by: Literal["likelihood", "vote", "decision"]
    """How it was selected."""

    index: int | None = None
    """Number of the sample, from 0; None if no sample is a candidate: all failed, or none has the
    field that votes."""

    mean_logprobs: list[float | None] = Field(default_factory=list, exclude_if=_is_absent)
    """By likelihood: per sample, the mean log probability of its tokens; None if it failed."""

    votes: dict[str, int] = Field(
        default_factory=dict, repr=False, exclude_if=lambda votes: not votes
    )
    """By vote: answers, and how many samples gave each, the most frequent first. Those of a field
    are JSON."""

    answers: list[Answer | None] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    """By decision: the answer about each sample; None if it failed."""


class JobResult(BaseModel):
    """How a job ended, with its output."""

    model_config = _CONFIG

    id: str
    """Id of the job."""

    model: str
    """Model that the job asked for."""

    status: JobState
    """`completed`, or another end, with the output so far."""

    finish_reason: FinishReason | None = None
    """`stop`: a stop string, a stop token or the end of text; `length`: `max_tokens`;
    `tool_calls`: as `stop`, with calls."""

    stop_reason: str | int | None = None
    """The stop string or token id that ended it; None for the end of text."""

    text: str = ""
    """Text of the output. This and the fields around it are those of the first sample."""

    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    """Calls of the job's `tools`; their markup is not in `text`."""

    reasoning_content: str | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """What the model thought before its answer; not in `text`, nor in a stream."""

    logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """Per output token, if the job asked for `logprobs`: of the model's own distribution,
    before any control."""

    entropies: list[float] | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """Per output token, in nats, if the job asked for `entropy`."""

    prompt_logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """Per prompt token, if the job asked for `prompt_logprobs`; None for the first."""

    logprob_details: LogprobDetails | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """The texts of the tokens in `logprobs` and `prompt_logprobs`, if the job asked for these."""

    decision: DecisionResult | None = Field(default=None, exclude_if=_is_absent)
    """Answers to the questions of a job with `decision`."""

    embedding: EmbeddingResult | None = Field(default=None, exclude_if=_is_absent)
    """Vectors of the texts of a job with `embedding`."""

    scoring: ScoringResult | None = Field(default=None, exclude_if=_is_absent)
    """Scores of the texts of a job with `scoring`."""

    explain: Explanation | None = Field(default=None, repr=False, exclude_if=_is_absent)
    """What explains the output of a job with `explain`."""

    beam_search: BeamSearchResult | None = Field(default=None, exclude_if=_is_absent)
    """Scores of the outputs of a job with `beam_search`."""

    samples: list[Completion] = Field(default_factory=list, repr=False, exclude_if=_is_absent)
    """All samples, if the job asked for more than one; see `completions`."""

    selection: SelectedSample | None = Field(default=None, exclude_if=_is_absent)
    """Which sample was selected, if the job asked for it (`select`); see `selected`."""

    watermarked: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether the output was marked as generated with one of the operator's keys."""

    usage: Usage = Field(default_factory=Usage)
    """Numbers of tokens."""

    metrics: Metrics = Field(default_factory=Metrics)
    """Times and counts of the job."""

    attempt: int = 1
    """Number of claims, the last one included."""

    worker: str | None = None
    """Worker that ended it; None if none had it."""

    error: JobError | None = None
    """Why it ended without a completion; None if it completed."""

    metadata: dict[str, str] = Field(default_factory=dict)
    """Your own data about the job."""

    tenant: str = keys.DEFAULT_TENANT
    """Owner of the job."""

    tags: list[str] = Field(default_factory=list)
    """Labels of the job."""

    token_ids: list[int] = Field(default_factory=list, exclude=True, repr=False)
    """The generated token ids. Kept in the record's own token string, so not part of the JSON."""

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
            reasoning_content=self.reasoning_content,
            error=None if self.error is None else self.error.message,
        )
        return (only,)

    @property
    def selected(self) -> Completion | None:
        """The selected sample, or the only one; None if the job selects, and none was a candidate.

        A stream, and `text`, are always those of the first sample.
        """
        if self.selection is None:
            return self.completions[0]
        index = self.selection.index
        return None if index is None else self.completions[index]

    @property
    def message(self) -> dict[str, Any]:
        """The output as an assistant message, for the next turn of the chat."""
        return self.completions[0].message


class JobStatus(BaseModel):
    """The status of a job."""

    model_config = _CONFIG

    id: str
    """Id of the job."""

    model: str
    """Model that the job asks for."""

    tenant: str = keys.DEFAULT_TENANT
    """Owner of the job, for the fair share."""

    state: JobState
    """State of the job."""

    cancelling: bool = False
    """Cancelled while running: it ends at its next checkpoint."""

    output_tokens: int = 0
    """Tokens generated and stored so far."""

    attempts: int = 0
    """Claims so far: more than one after its worker was stopped or lost, its engine was lost, or it
    was retried; `history` says which."""

    history: list[Attempt] = Field(default_factory=list)
    """The claims, oldest first, each with its times, worker, tokens and the cause of its end;
    the last one may still run. Of a long history, the first four and the last sixteen are kept."""

    attempts_left_out: int = 0
    """Ended claims that `history` leaves out."""

    run: int = 1
    """Number of the run: 1, and one more per retry."""

    retries: int = 0
    """Failed attempts of this run that were followed by another one, by the job's retry policy."""

    retry_at_ms: int | None = None
    """When a job that waits after a failed attempt is tried again; None if it does not wait so."""

    retry_error: JobError | None = None
    """Why that attempt failed."""

    tags: list[str] = Field(default_factory=list)
    """Labels of the job."""

    worker: str | None = None
    """Worker that has, or last had, the job."""

    enqueued_at_ms: int
    """Milliseconds of unix time on Redis' clock, as all times below. Without `_ms`, each is a
    datetime in UTC."""

    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    deadline_at_ms: int | None = None
    scheduled_at_ms: int | None = None
    """Time before which the job does not run: the end of its delay, or of its last wait for a
    retry; None if it had neither."""

    error: JobError | None = None
    """Why it ended without a completion."""

    @property
    def enqueued_at(self) -> datetime:
        """When it was submitted, in UTC."""
        return moment(self.enqueued_at_ms)

    @property
    def started_at(self) -> datetime | None:
        """When a worker first claimed it, in UTC; None before."""
        return moment(self.started_at_ms)

    @property
    def finished_at(self) -> datetime | None:
        """When it ended, in UTC; None before."""
        return moment(self.finished_at_ms)

    @property
    def deadline_at(self) -> datetime | None:
        """When it expires, in UTC; None if it has no deadline."""
        return moment(self.deadline_at_ms)

    @property
    def scheduled_at(self) -> datetime | None:
        """Time before which it does not run, in UTC; None if it had no delay and no retry."""
        return moment(self.scheduled_at_ms)

    @property
    def retry_at(self) -> datetime | None:
        """When it is tried again after a failed attempt, in UTC; None if it does not wait so."""
        return moment(self.retry_at_ms)
