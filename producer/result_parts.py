"""The parts of a result: error, usage, called functions, times and log probabilities."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Unknown fields are ignored: a worker of a later version may add some.
CONFIG = ConfigDict(
    extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
)


def is_absent(value: object) -> bool:
    """Return whether a result leaves a field out: unused fields take no room in Redis."""
    return value is None or value == []


FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


class JobError(BaseModel):
    """Why a job ended without a completion."""

    model_config = CONFIG

    code: str
    """Stable code of the error; docs/reference/errors.md lists all."""

    message: str
    """For people. Never holds prompt or output text."""

    retryable: bool = False
    """Whether the same job, submitted again, may succeed."""


class PromptTokensDetails(BaseModel):
    """The origin of the prompt's KV."""

    model_config = CONFIG

    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""


class CompletionTokensDetails(BaseModel):
    """The parts of the output."""

    model_config = CONFIG

    reasoning_tokens: int = 0
    """Tokens of thoughts, with those of their markup."""


class Usage(BaseModel):
    """Tokens, counted as OpenAI does."""

    model_config = CONFIG

    prompt_tokens: int = 0
    """Tokens of the prompt."""

    completion_tokens: int = 0
    """Generated tokens, of all samples."""

    total_tokens: int = 0
    """Their sum."""

    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)
    """Where the prompt's KV came from."""

    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, exclude_if=is_absent
    )
    """The parts of the output, if it has thoughts."""


class CalledFunction(BaseModel):
    """The function of a call, and its arguments."""

    model_config = CONFIG

    name: str
    """Name of the function."""

    arguments: str = Field(repr=False)
    """A JSON object, as text."""


class ToolCall(BaseModel):
    """A call of a function, in OpenAI's form."""

    model_config = CONFIG

    id: str
    """For the `tool_call_id` of the tool's message. A job that is restarted makes the same ids."""

    type: Literal["function"] = "function"
    """Kind of the tool."""

    function: CalledFunction
    """The function and its arguments."""


class Metrics(BaseModel):
    """Times of the job in seconds, and counts of interruptions."""

    model_config = CONFIG

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

    model_config = ConfigDict(**CONFIG, ser_json_bytes="base64", val_json_bytes="base64")

    num_top: int | None = None
    """Likeliest tokens that the job asked for per output token; None if it asked for none."""

    token_bytes: dict[int, bytes] = Field(default_factory=dict, repr=False)
    """Bytes of each token that has a log probability, by its id; base64 in JSON. A token may be
    a part of a character, and a special token has the bytes of its name."""

    echoed_token_ids: list[int] | None = Field(default=None, repr=False)
    """Tokens of the prompt, if the job asked for `echo`."""

    asked_token_ids: list[int] = Field(default_factory=list, exclude_if=is_absent)
    """Tokens that the job asked for by `logprob_token_ids`."""
