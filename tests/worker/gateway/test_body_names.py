"""Errors name the fields that the caller wrote, not those of the job that they become."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, OpenAI


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embeddings", {"input": ["a", ""]}, "input"),
        ("/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/embeddings", {"input": "a", "temperature": 0.5}, "temperature"),
        ("/score", {"query": "q", "documents": [""]}, "documents"),
        ("/score", {"text_1": "q", "text_2": [""]}, "text_2"),
        ("/score", {"query": "", "documents": ["a"]}, "query"),
        ("/rerank", {"query": "q", "documents": ["a"], "truncate": "middle"}, "truncate"),
        (
            "/decisions",
            {"state": "x", "questions": {"a": {"type": "choice"}}, "rotations": 0},
            "rotations",
        ),
        ("/decisions", {"questions": {"a": {"type": "yes_no"}}}, "state"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_error_names_the_field_of_the_body(
    openai: OpenAI, path: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.post(path, cast_to=object, body=body | {"model": "demo"})
    assert refused.value.param == param
    for section in ("embedding.", "scoring.", "decision."):
        assert section not in str(refused.value)
