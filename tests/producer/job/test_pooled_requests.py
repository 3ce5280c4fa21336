"""Bodies of `/v1/embeddings`, `/v1/score` and `/v1/rerank`: what is wrong is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.line import decision_fields
from batchmill.producer.job.pooled_requests import (
    read_embedding_body,
    read_rerank_body,
    read_score_body,
)

Read = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("documents", [5, True, "text", {"text": "x"}, [5], [[5]], [{"text": 5}]])
def test_documents_to_rank_must_be_a_list_of_texts(documents: Any) -> None:
    with pytest.raises(JobRejected, match="documents must be a list of texts") as refused:
        read_rerank_body({"query": "q", "documents": documents})
    assert refused.value.param == "documents"


def test_a_ranking_repeats_its_documents_unless_it_is_told_not_to() -> None:
    body = {"query": "q", "documents": ["a", {"text": "b"}]}
    fields, how = read_rerank_body(body)
    assert fields["scoring"]["input"] == ["a", "b"]
    assert how.documents == ("a", "b")
    _, how = read_rerank_body(body | {"return_documents": False})
    assert how.documents == ()


@pytest.mark.parametrize("encoding", [[], "", 0, "int8"])
def test_an_unknown_encoding_is_refused(encoding: Any) -> None:
    with pytest.raises(JobRejected, match="encoding_format must be float or base64"):
        read_embedding_body({"input": "x", "encoding_format": encoding})


@pytest.mark.parametrize(
    ("read", "body", "name"),
    [
        (read_embedding_body, {"input": "x", "embedding": {"input": "y"}}, "embedding"),
        (read_score_body, {"documents": "x", "scoring": {"input": "y"}}, "scoring"),
        (read_rerank_body, {"query": "q", "documents": ["x"], "scoring": {}}, "scoring"),
        (decision_fields, {"state": "x", "decision": {"state": "y"}}, "decision"),
    ],
)
def test_the_section_of_a_job_is_refused_beside_its_fields(
    read: Read, body: dict[str, Any], name: str
) -> None:
    with pytest.raises(JobRejected, match="give its fields by themselves") as refused:
        read(body)
    assert refused.value.param == name
