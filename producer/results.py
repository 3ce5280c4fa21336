"""A job's result and status as its worker reports them: output, usage, times and error."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from batchmill.producer.moments import moment
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_parts import (
    CONFIG,
    FinishReason,
    JobError,
    LogprobDetails,
    Logprobs,
    Metrics,
    ToolCall,
    Usage,
    is_absent,
)
from batchmill.producer.result_sections import Answer, BeamSearchResult, DecisionResult, Explanation
from batchmill.producer.vector_sections import EmbeddingResult, ScoringResult


class Completion(BaseModel):
    """One sample of a job."""

    model_config = CONFIG

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

    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=is_absent)
    """Calls of the job's `tools`; their markup is not in `text`."""

    reasoning_content: str | None = Field(default=None, repr=False, exclude_if=is_absent)
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

    model_config = CONFIG

    by: Literal["likelihood", "vote", "decision"]
    """How it was selected."""

    index: int | None = None
    """Number of the sample, from 0; None if no sample is a candidate: all failed, or none has the
    field that votes."""

    mean_logprobs: list[float | None] = Field(default_factory=list, exclude_if=is_absent)
    """By likelihood: per sample, the mean log probability of its tokens; None if it failed."""

    votes: dict[str, int] = Field(
        default_factory=dict, repr=False, exclude_if=lambda votes: not votes
    )
    """By vote: answers, and how many samples gave each, the most frequent first. Those of a field
    are JSON."""

    answers: list[Answer | None] = Field(default_factory=list, repr=False, exclude_if=is_absent)
    """By decision: the answer about each sample; None if it failed."""


class JobResult(BaseModel):
    """How a job ended, with its output."""

    model_config = CONFIG

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

    tool_calls: list[ToolCall] = Field(default_factory=list, repr=False, exclude_if=is_absent)
    """Calls of the job's `tools`; their markup is not in `text`."""

    reasoning_content: str | None = Field(default=None, repr=False, exclude_if=is_absent)
    """What the model thought before its answer; not in `text`, nor in a stream."""

    logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=is_absent)
    """Per output token, if the job asked for `logprobs`: of the model's own distribution,
    before any control."""

    entropies: list[float] | None = Field(default=None, repr=False, exclude_if=is_absent)
    """Per output token, in nats, if the job asked for `entropy`."""

    prompt_logprobs: Logprobs | None = Field(default=None, repr=False, exclude_if=is_absent)
    """Per prompt token, if the job asked for `prompt_logprobs`; None for the first."""

    logprob_details: LogprobDetails | None = Field(default=None, repr=False, exclude_if=is_absent)
    """The texts of the tokens in `logprobs` and `prompt_logprobs`, if the job asked for these."""

    decision: DecisionResult | None = Field(default=None, exclude_if=is_absent)
    """Answers to the questions of a job with `decision`."""

    embedding: EmbeddingResult | None = Field(default=None, exclude_if=is_absent)
    """Vectors of the texts of a job with `embedding`."""

    scoring: ScoringResult | None = Field(default=None, exclude_if=is_absent)
    """Scores of the texts of a job with `scoring`."""

    explain: Explanation | None = Field(default=None, repr=False, exclude_if=is_absent)
    """What explains the output of a job with `explain`."""

    beam_search: BeamSearchResult | None = Field(default=None, exclude_if=is_absent)
    """Scores of the outputs of a job with `beam_search`."""

    samples: list[Completion] = Field(default_factory=list, repr=False, exclude_if=is_absent)
    """All samples, if the job asked for more than one; see `completions`."""

    selection: SelectedSample | None = Field(default=None, exclude_if=is_absent)
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

    model_config = CONFIG

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
