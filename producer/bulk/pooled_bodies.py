"""Results with vectors or scores, in the formats of the APIs that ask for them."""

from __future__ import annotations

from typing import Any

from batchmill.producer.job.pooled_requests import PooledFormat
from batchmill.producer.results import JobResult


def embedding_body(result: JobResult, how: PooledFormat | None = None) -> dict[str, Any]:
    """Return the vectors of a completed job in OpenAI's form.

    Args:
        result: Has `embedding`.
        how: The encoding; None is that of the job.
    """
    found = result.embedding
    if found is None:
        return {"object": "list", "data": [], "model": result.model, "usage": _usage(result)}
    encoding = found.encoding_format if how is None else how.encoding
    is_base64 = encoding == "base64"
    values: list[Any] = (
        [found.encoded(index) for index in range(found.count)] if is_base64 else found.vectors
    )
    data = [
        {"object": "embedding", "index": index, "embedding": value}
        for index, value in enumerate(values)
    ]
    return {"object": "list", "data": data, "model": result.model, "usage": _usage(result)}


def score_body(result: JobResult) -> dict[str, Any]:
    """Return the scores of a completed job in vLLM's form, and all labels beside them.

    `score` is that of the only label, or of the last of several.
    """
    found = result.scoring
    data = []
    if found is not None:
        data = [
            {
                "object": "score",
                "index": index,
                "score": scores[-1],
                "scores": dict(zip(found.labels, scores, strict=True)),
            }
            for index, scores in enumerate(found.scores)
        ]
    body = {"id": result.id, "object": "list", "data": data}
    return body | {"model": result.model, "usage": _usage(result)}


def rerank_body(result: JobResult, how: PooledFormat) -> dict[str, Any]:
    """Return the ranking of a completed job in the form of Jina, Cohere and vLLM."""
    found = result.scoring
    results: list[dict[str, Any]] = []
    if found is not None:
        relevance = found.relevance
        for index in found.ranking[: how.top_n]:
            entry: dict[str, Any] = {"index": index, "relevance_score": relevance[index]}
            if how.documents:
                entry["document"] = {"text": how.documents[index]}
            results.append(entry)
    return {"id": result.id, "model": result.model, "usage": _usage(result), "results": results}


def _usage(result: JobResult) -> dict[str, Any]:
    usage = result.usage
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
