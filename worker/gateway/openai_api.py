"""Names of the APIs, as the gateway notes them in records."""

from __future__ import annotations

from typing import Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
EMBEDDINGS: Final = "/v1/embeddings"
#: As vLLM, Jina and Cohere have them.
SCORE: Final = "/v1/score"
RERANK: Final = "/v1/rerank"
DECISIONS: Final = "/v1/decisions"
BATCHES: Final = "/v1/batches"
#: Anthropic's.
MESSAGES: Final = "/v1/messages"
MESSAGE_BATCHES: Final = "/v1/messages/batches"
#: Endpoints that a line of a batch may name.
BATCH_ENDPOINTS: Final = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, SCORE, DECISIONS)
#: Those of OpenAI's that this version does not have.
OTHER_BATCH_ENDPOINTS: Final = (
    *("/v1/moderations", "/v1/images/generations", "/v1/images/edits"),
    "/v1/videos",
)
