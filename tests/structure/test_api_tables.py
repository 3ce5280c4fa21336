"""The pages of the HTTP APIs list every field that the stock clients know, and what becomes of it.

Each row is held to what the gateway does with the field.
"""

from __future__ import annotations

import typing
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.messages import batch_create_params as message_batch_params
from openai.types import (
    batch_create_params,
    completion_create_params,
    embedding_create_params,
    webhooks,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from batchmill.producer.job.line import LineKind
from batchmill.producer.job.pooled_requests import (
    read_embedding_body,
    read_rerank_body,
    read_score_body,
)
from batchmill.producer.job.validation import parse_job
from batchmill.worker.gateway.api_errors import ApiError, api_error
from batchmill.worker.gateway.completion_request import read_completion
from batchmill.worker.gateway.decisions import read_decision
from batchmill.worker.gateway.message_request import read_message_request
from batchmill.worker.gateway.response_request import read_response
from batchmill.worker.gateway.spec.body import Use
from batchmill.worker.gateway.spec.pooled_fields import EMBEDDING, RERANKING, SCORING
from batchmill.worker.gateway.vectors import read_pooled

from .api_tables import PAGES, bodies, stale_pages

#: The parameters of the stock clients, by the body that they send.
CLIENTS: dict[str, Any] = {
    "ChatCompletionRequest": chat_create_params.CompletionCreateParamsStreaming,
    "CompletionRequest": completion_create_params.CompletionCreateParamsStreaming,
    "ResponseRequest": response_create_params.ResponseCreateParamsStreaming,
    "EmbeddingRequest": embedding_create_params.EmbeddingCreateParams,
    "BatchCreateRequest": batch_create_params.BatchCreateParams,
    "MessageRequest": message_create_params.MessageCreateParamsStreaming,
    "MessageBatchCreateRequest": message_batch_params.BatchCreateParams,
    "WebhookEndpointCreateRequest": webhooks.WebhookCreateParams,
    "WebhookEndpointUpdateRequest": webhooks.WebhookUpdateParams,
    "WebhookSecretRotateRequest": webhooks.WebhookRotateSecretParams,
    "WebhookEndpointTestRequest": webhooks.WebhookTestParams,
}
#: Sent as headers by the clients, not in the body.
HEADERS = {"user_profile_id", "workspace_id"}
SMALLEST: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"messages": [{"role": "user", "content": "hello"}]},
    "CompletionRequest": {"prompt": "hello"},
    "ResponseRequest": {"input": "hello"},
    "EmbeddingRequest": {"input": "hello"},
    "ScoreRequest": {"documents": ["hello"], "query": "mill"},
    "RerankRequest": {"documents": ["hello"], "query": "mill"},
    "DecisionRequest": {"state": "hello", "questions": {"greeting": {"type": "yes_no"}}},
    "MessageRequest": {"max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]},
}
ROWS = [
    pytest.param(title, row, id=f"{title}-{row.name}")
    for title in SMALLEST
    for row in bodies()[title].rows()
]


def job_of(title: str, **fields: Any) -> Any:
    """Return the job of a request, read as the gateway reads it."""
    given = {**SMALLEST[title], **fields}
    read: Any
    match title:
        case "ChatCompletionRequest":
            read = read_completion(LineKind.CHAT, given)
        case "CompletionRequest":
            read = read_completion(LineKind.TEXT, given)
        case "ResponseRequest":
            read = read_response(given)
        case "EmbeddingRequest":
            read = read_pooled(EMBEDDING, read_embedding_body, given)
        case "ScoreRequest":
            read = read_pooled(SCORING, read_score_body, given)
        case "RerankRequest":
            read = read_pooled(RERANKING, read_rerank_body, given)
        case "DecisionRequest":
            read = read_decision(given)
        case _:
            read = read_message_request(given)
    return parse_job(read[0])


def test_the_tables_are_current() -> None:
    assert stale_pages() == [], "run: python tests/structure/api_tables.py"
    texts = "".join(page.read_text() for page in PAGES)
    assert [title for title in bodies() if f"<!-- fields: {title} -->" not in texts] == []


@pytest.mark.parametrize("title", CLIENTS)
def test_every_field_that_a_stock_client_knows_has_a_row(title: str) -> None:
    known = set(typing.get_type_hints(CLIENTS[title])) - HEADERS
    assert known - {row.name for row in bodies()[title].rows()} == set()


@pytest.mark.parametrize(("title", "row"), ROWS)
def test_a_field_is_used_as_its_row_says(title: str, row: Any) -> None:
    if row.use is Use.NO_EFFECT:
        assert job_of(title, **{row.name: "anything"}) == job_of(title)
    if row.use is not Use.REFUSED:
        return
    for neutral in row.neutral:
        assert job_of(title, **{row.name: neutral}) == job_of(title)
    with pytest.raises(Exception, match=row.name) as caught:
        job_of(title, **{row.name: {"anything": 1}})
    error = api_error(caught.value)
    assert isinstance(error, ApiError)
    assert (error.code, error.param) == ("unsupported_parameter", row.name)


def test_every_body_that_jobs_are_made_of_is_tested() -> None:
    assert {title for title, body in bodies().items() if body.takes_job} == set(SMALLEST)
