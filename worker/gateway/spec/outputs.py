"""The generated outputs that the gateway returns, as pydantic models for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from batchmill.producer.result_parts import ToolCall, Usage
from batchmill.producer.result_sections import Answer, BeamSearchResult, Explanation
from batchmill.producer.results import SelectedSample

from .objects import Object, ResponseUsage, Seconds


class WithOwnFields(Object):
    """What a generated output has besides the fields of its API, if its job asked for it."""

    selection: SelectedSample | None = None
    """Which sample was selected."""
    watermarked: bool | None = None
    """True if the output was marked."""
    explain: Explanation | None = None
    """What explains the output."""
    beam_search: BeamSearchResult | None = None
    """Scores of the outputs of a search."""


class ChatMessage(Object):
    """The answer of a chat."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None


class ChatChoice(Object):
    """One sample of a chat."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatCompletion(WithOwnFields):
    """A chat's answer."""

    id: str
    object: Literal["chat.completion"]
    created: Seconds
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Object):
    """One sample of a text completion."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class Completion(WithOwnFields):
    """A text completion."""

    id: str
    object: Literal["text_completion"]
    created: Seconds
    model: str
    choices: list[TextChoice]
    usage: Usage


class PromptUsage(Object):
    """Tokens of a request that generates nothing."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Object):
    """A vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingList(Object):
    """The vectors of the inputs, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class Score(Object):
    """The score of a document."""

    object: Literal["score"]
    index: int
    score: float
    """Of the only label, or of the last of several."""
    scores: dict[str, float]
    """Of every label."""


class ScoreList(Object):
    """The scores of the documents, in their order."""

    id: str
    object: Literal["list"]
    data: list[Score]
    model: str
    usage: PromptUsage


class RankedText(Object):
    """A document."""

    text: str


class RankedResult(Object):
    """A document's place and relevance."""

    index: int
    relevance_score: float
    document: RankedText | None = None


class Ranking(Object):
    """Documents by their relevance to a query, the best first."""

    id: str
    model: str
    usage: PromptUsage
    results: list[RankedResult]


class DecisionAnswers(Object):
    """The answers of a decision."""

    id: str
    object: Literal["decision"]
    created: Seconds
    model: str
    answers: dict[str, Answer]
    num_prompts: int
    usage: Usage


class ResponseError(Object):
    """Why a response failed."""

    code: str
    message: str


class Response(WithOwnFields):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: Seconds
    completed_at: Seconds | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    service_tier: str
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class MessageUsage(Object):
    """Tokens of a message. Those of the prompt that were cached are counted apart."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(WithOwnFields):
    """A message, in Anthropic's terms."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
