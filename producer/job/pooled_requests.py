"""Bodies of other APIs that ask for embeddings or scores, read into the fields of a job.

OpenAI's `/v1/embeddings`; `/v1/rerank` as Jina, Cohere and vLLM have it; `/v1/score` as in vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from batchmill.producer.errors import JobRejected, UnsupportedParameter

#: Fields of `embedding` that a body of `/v1/embeddings` may have.
_EMBEDDING_FIELDS: Final = ("input", "dimensions", "pooling", "normalize", "truncate")
_FORMATS: Final = ("float", "base64")
#: Names of the two sides of a score: ours first, then those of vLLM.
_QUERIES: Final = ("query", "text_1", "queries")
_DOCUMENTS: Final = ("documents", "text_2", "input")
#: Cohere's names of what is cut, and ours.
_SIDES: Final = {"NONE": None, "START": "start", "END": "end"}


@dataclass(frozen=True, slots=True)
class PooledFormat:
    """How the caller wants vectors or scores; not part of the job."""

    #: "float" or "base64".
    encoding: str = "float"
    #: Documents of a ranking at most; None is all.
    top_n: int | None = None
    #: The documents themselves, if the ranking is to repeat them.
    documents: tuple[str, ...] = ()
    #: Names in the body of those fields of the job's section that have another one there.
    names: Mapping[str, str] = field(default_factory=dict)


def read_embedding_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], PooledFormat]:
    """Return the fields of the job in a body of `/v1/embeddings`, and the format of its response.

    Raises:
        JobRejected: a field is missing or invalid.
    """
    fields = dict(body)
    if fields.get("input") is None:
        raise JobRejected("input is missing: it is what /v1/embeddings embeds", param="input")
    encoding = fields.pop("encoding_format", None)
    encoding = "float" if encoding is None else encoding
    if encoding not in _FORMATS:
        raise JobRejected("encoding_format must be float or base64", param="encoding_format")
    job = _with_section(fields, "embedding", _EMBEDDING_FIELDS)
    if encoding == "base64":
        job["embedding"]["encoding_format"] = encoding
    return job, PooledFormat(encoding)


def read_score_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], PooledFormat]:
    """Return the fields of the job in a body of `/v1/score`; see `read_embedding_body`.

    Raises:
        JobRejected: a field is missing or invalid.
    """
    fields = dict(body)
    names = {"input": _given_name(body, _DOCUMENTS), "query": _given_name(body, _QUERIES)}
    query, documents = _take_one(fields, _QUERIES), _take_one(fields, _DOCUMENTS)
    if isinstance(query, list) and len(query) == 1:
        query = query[0]
    if isinstance(query, list):
        raise UnsupportedParameter(
            "query must be one text: send a request for each", param=_QUERIES[0]
        )
    if documents is None:
        raise JobRejected(f"{_DOCUMENTS[0]} is missing: it is what is scored", param=_DOCUMENTS[0])
    fields |= {"input": _texts(documents), "query": query}
    return _with_section(fields, "scoring", _SCORING_FIELDS), PooledFormat(names=names)


_SCORING_FIELDS: Final = ("input", "query", "activation", "truncate")


def read_rerank_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], PooledFormat]:
    """Return the fields of the job in a body of `/v1/rerank`; see `read_embedding_body`.

    Raises:
        JobRejected: a field is missing or invalid.
    """
    fields = dict(body)
    for name in ("query", "documents"):
        if fields.get(name) is None:
            raise JobRejected(f"{name} is missing: /v1/rerank needs it", param=name)
    documents = _ranked_texts(fields.pop("documents"))
    top_n, returns = fields.pop("top_n", None), fields.pop("return_documents", None)
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise JobRejected("top_n must be an integer of at least 1", param="top_n")
    if returns not in (None, True, False):
        raise JobRejected("return_documents must be true or false", param="return_documents")
    if isinstance(fields.get("truncate"), str) and fields["truncate"] in _SIDES:
        fields["truncate"] = _SIDES[fields["truncate"]]
    fields["input"] = documents
    return _with_section(fields, "scoring", _SCORING_FIELDS), PooledFormat(
        top_n=top_n,
        documents=() if returns is False else tuple(documents),
        names={"input": "documents"},
    )


def _with_section(fields: dict[str, Any], section: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Move the fields that belong to a section into it.

    Raises:
        JobRejected: the section is given as well.
    """
    if fields.get(section) is not None:
        raise JobRejected(
            f"{section} is the name of a job's field: give its fields by themselves", param=section
        )
    given = {name: fields.pop(name) for name in names if name in fields}
    return fields | {section: {name: value for name, value in given.items() if value is not None}}


def _given_name(body: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the name under which a field that has several is given; the first if it is not."""
    return next((name for name in names if body.get(name) is not None), names[0])


def _take_one(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Take a field that has several names, of which one may be given.

    Raises:
        JobRejected: two are given.
    """
    given = [name for name in names if fields.get(name) is not None]
    if len(given) > 1:
        raise JobRejected(f"{given[1]} is another name of {given[0]}: give one", param=given[1])
    values = [fields.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)


def _ranked_texts(documents: Any) -> list[str]:
    """Return the documents of a ranking, each a text.

    Raises:
        JobRejected: they are something else.
    """
    texts = _texts(documents)
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise JobRejected(
            "documents must be a list of texts, or of objects with a text", param="documents"
        )
    return texts


def _texts(documents: Any) -> Any:
    """Return documents as texts; Cohere and Jina also take objects with a `text`."""
    if not isinstance(documents, list):
        return documents
    return [
        each["text"] if isinstance(each, dict) and each.keys() == {"text"} else each
        for each in documents
    ]
