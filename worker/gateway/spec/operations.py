"""`OPERATIONS`: what each route takes and returns, by its method and path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchmill.producer.store.receivers import Receiver

from . import objects, outputs
from .body import Body
from .decision_fields import DECISION
from .endpoint_fields import ENDPOINT, ENDPOINT_CHANGES, ENDPOINT_TEST, ROTATION
from .message_fields import MESSAGE, MESSAGE_BATCH
from .pooled_fields import EMBEDDING, RERANKING, SCORING
from .requests import BATCH, CHAT, COMPLETION
from .response_fields import RESPONSE
from .shapes import TEXT

Api = Literal["OpenAI", "Anthropic", "Decisions", "Webhook endpoints", "Usage", "Service"]
PATH_PARAM = re.compile(r"{(\w+)(?::\w+)?}")
_JSONL = "application/x-jsonl"
_BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter in the URL's query."""

    name: str
    meaning: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route takes and returns.

    Attributes:
        api: the API that it belongs to.
        returns: models of its JSON objects; empty if it returns none.
        body: the JSON body that it takes.
        form: properties of the form that it takes instead.
        query: parameters in its URL.
        streams: whether it may return server-sent events.
        content_type: of a response that is not JSON.
        is_open: whether it needs no API key.
        is_repeatable: whether the header `Idempotency-Key` makes a repeated request harmless.
    """

    api: Api
    returns: tuple[Any, ...] = ()
    body: Body | None = None
    form: Mapping[str, Any] | None = None
    query: tuple[Param, ...] = ()
    streams: bool = False
    content_type: str | None = None
    is_open: bool = False
    is_repeatable: bool = False


_AFTER = Param("after", "id of the last object of the page before", TEXT)


def _limit(most: int) -> Param:
    return Param(
        "limit", "most objects of the page", {"type": "integer", "minimum": 1, "maximum": most}
    )


_DAY = {"type": "string", "format": "date"}
_FILE_QUERY = (
    _AFTER,
    _limit(10_000),
    Param("order", "by time: newest first, or oldest first", {"enum": ["asc", "desc"]}),
    Param("purpose", "only files of this purpose", TEXT),
)
_USAGE_QUERY = (
    Param("start_date", "first day in UTC", _DAY),
    Param("end_date", "last day in UTC", _DAY),
    Param("group_by", "labels with commas: some of day, tenant, key and model", TEXT),
)
_STREAM_QUERY = (
    Param("stream", "whether to follow it as events", {"type": "boolean"}),
    Param(
        "starting_after",
        "number of the last event that is known",
        {"type": "integer", "minimum": -1, "maximum": 2**31},
    ),
    Param("include_obfuscation", "must be false", {"const": False}),
)
_FILE_FORM = {
    "file": {"type": "string", "format": "binary"},
    "purpose": {"const": "batch"},
    "expires_after[anchor]": {"const": "created_at"},
    "expires_after[seconds]": {"type": "integer", "minimum": 3600},
}
_FILES, _FILE = "/v1/files", "/v1/files/{file_id}"
_BATCHES, _BATCH = "/v1/batches", "/v1/batches/{batch_id}"
_RESPONSES, _RESPONSE = "/v1/responses", "/v1/responses/{response_id}"
_MESSAGE_BATCHES = "/v1/messages/batches"
_MESSAGE_BATCH = "/v1/messages/batches/{batch_id}"
_ENDPOINTS, _ENDPOINT = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{endpoint_id}"

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/healthz"): Operation("Service", (objects.Health,), is_open=True),
    ("GET", "/readyz"): Operation("Service", (objects.Readiness,), is_open=True),
    ("GET", "/openapi.json"): Operation("Service", (dict[str, Any],), is_open=True),
    ("GET", "/v1/models"): Operation(
        "OpenAI", (objects.Models, objects.AnthropicPage[objects.AnthropicModel])
    ),
    ("GET", "/v1/models/{model}"): Operation("OpenAI", (objects.Model, objects.AnthropicModel)),
    ("GET", "/v1/usage"): Operation("Usage", (objects.UsageSums,), query=_USAGE_QUERY),
    ("POST", "/v1/chat/completions"): Operation(
        "OpenAI", (outputs.ChatCompletion,), CHAT, streams=True, is_repeatable=True
    ),
    ("POST", "/v1/completions"): Operation(
        "OpenAI", (outputs.Completion,), COMPLETION, streams=True, is_repeatable=True
    ),
    ("POST", "/v1/embeddings"): Operation(
        "OpenAI", (outputs.EmbeddingList,), EMBEDDING, is_repeatable=True
    ),
    ("POST", "/v1/score"): Operation("OpenAI", (outputs.ScoreList,), SCORING, is_repeatable=True),
    ("POST", "/v1/rerank"): Operation("OpenAI", (outputs.Ranking,), RERANKING, is_repeatable=True),
    ("POST", "/v1/decisions"): Operation(
        "Decisions", (outputs.DecisionAnswers,), DECISION, is_repeatable=True
    ),
    ("POST", "/v1/systemone"): Operation(
        "Decisions", (outputs.DecisionAnswers,), DECISION, is_repeatable=True
    ),
    ("POST", _RESPONSES): Operation(
        "OpenAI", (outputs.Response,), RESPONSE, streams=True, is_repeatable=True
    ),
    ("GET", _RESPONSE): Operation("OpenAI", (outputs.Response,), query=_STREAM_QUERY, streams=True),
    ("DELETE", _RESPONSE): Operation("OpenAI", (objects.Deleted,)),
    ("POST", f"{_RESPONSE}/cancel"): Operation("OpenAI", (outputs.Response,)),
    ("POST", _FILES): Operation("OpenAI", (objects.File,), form=_FILE_FORM),
    ("GET", _FILES): Operation("OpenAI", (objects.Page[objects.File],), query=_FILE_QUERY),
    ("GET", _FILE): Operation("OpenAI", (objects.File,)),
    ("DELETE", _FILE): Operation("OpenAI", (objects.Deleted,)),
    ("GET", f"{_FILE}/content"): Operation("OpenAI", content_type=_BYTES),
    ("POST", _BATCHES): Operation("OpenAI", (objects.Batch,), BATCH, is_repeatable=True),
    ("GET", _BATCHES): Operation(
        "OpenAI", (objects.Page[objects.Batch],), query=(_AFTER, _limit(100))
    ),
    ("GET", _BATCH): Operation("OpenAI", (objects.Batch,)),
    ("POST", f"{_BATCH}/cancel"): Operation("OpenAI", (objects.Batch,)),
    ("POST", "/v1/messages"): Operation(
        "Anthropic", (outputs.AnthropicMessage,), MESSAGE, streams=True, is_repeatable=True
    ),
    ("POST", _MESSAGE_BATCHES): Operation("Anthropic", (objects.MessageBatch,), MESSAGE_BATCH),
    ("GET", _MESSAGE_BATCHES): Operation(
        "Anthropic",
        (objects.AnthropicPage[objects.MessageBatch],),
        query=(Param("after_id", _AFTER.meaning, TEXT), _limit(1000)),
    ),
    ("GET", _MESSAGE_BATCH): Operation("Anthropic", (objects.MessageBatch,)),
    ("DELETE", _MESSAGE_BATCH): Operation("Anthropic", (objects.DeletedMessageBatch,)),
    ("POST", f"{_MESSAGE_BATCH}/cancel"): Operation("Anthropic", (objects.MessageBatch,)),
    ("GET", f"{_MESSAGE_BATCH}/results"): Operation("Anthropic", content_type=_JSONL),
    ("GET", "/v1/webhook_event_types"): Operation("Webhook endpoints", (objects.EventTypes,)),
    ("POST", _ENDPOINTS): Operation("Webhook endpoints", (objects.ReceiverWithSecret,), ENDPOINT),
    ("GET", _ENDPOINTS): Operation(
        "Webhook endpoints", (objects.Page[Receiver],), query=(_AFTER, _limit(20))
    ),
    ("GET", _ENDPOINT): Operation("Webhook endpoints", (Receiver,)),
    ("POST", _ENDPOINT): Operation("Webhook endpoints", (Receiver,), ENDPOINT_CHANGES),
    ("DELETE", _ENDPOINT): Operation("Webhook endpoints", (objects.Deleted,)),
    ("POST", f"{_ENDPOINT}/rotate_secret"): Operation(
        "Webhook endpoints", (objects.ReceiverWithSecret,), ROTATION
    ),
    ("POST", f"{_ENDPOINT}/test"): Operation(
        "Webhook endpoints", (objects.EndpointTest,), ENDPOINT_TEST
    ),
}


def documented_path(path: str) -> str:
    """Return a route's path as the document writes it."""
    return PATH_PARAM.sub(r"{\1}", path)
