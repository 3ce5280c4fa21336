"""The bodies of `/v1/embeddings`, `/v1/score` and `/v1/rerank`."""

from __future__ import annotations

from batchmill.engine.contract.kinds import SECTIONS
from batchmill.engine.contract.pooling import ACTIVATIONS, MAX_DIMENSIONS, MAX_INPUTS, TRUNCATIONS

from .body import Body, mapped, taken
from .requests import CANCELS, TIER, USER_FIELDS
from .shapes import FLAG, NULL, TEXT, choice, either, items, record

_TOKENS = items({"type": "integer", "minimum": 0, "maximum": 2**32 - 1})
_SOME_TEXT = {"type": "string", "minLength": 1}
_TRUNCATE = mapped(
    "truncate",
    "which side of an input above the model's length is cut; without it, such an input is refused",
    either(choice(*TRUNCATIONS), NULL),
)
_COMMON = (CANCELS, TIER, *USER_FIELDS)
_NOT_TAKEN = ("prompt", "messages", *SECTIONS.values())

EMBEDDING = Body(
    "EmbeddingRequest",
    fields=(
        mapped(
            "input",
            f"a text, its token ids, or up to {MAX_INPUTS} of these",
            either(
                _SOME_TEXT,
                _TOKENS,
                items(_SOME_TEXT, most=MAX_INPUTS),
                items(_TOKENS, most=MAX_INPUTS),
            ),
        ),
        mapped("encoding_format", "numbers, or base64 of float32", choice("float", "base64")),
        mapped(
            "dimensions",
            "keep only the first so many numbers of each vector",
            either({"type": "integer", "minimum": 1, "maximum": MAX_DIMENSIONS}, NULL),
        ),
        mapped("pooling", "`last`, `mean` or `cls`", either(choice("last", "mean", "cls"), NULL)),
        mapped(
            "normalize", "scale each vector to length 1, which is the default", either(FLAG, NULL)
        ),
        _TRUNCATE,
        *_COMMON,
    ),
    own=("model",),
    required=("input",),
    not_taken=_NOT_TAKEN,
)
_DOCUMENTS = items(either(_SOME_TEXT, record({"text": _SOME_TEXT})), most=MAX_INPUTS)
SCORING = Body(
    "ScoreRequest",
    fields=(
        mapped("query", "what the documents are scored against", either(_SOME_TEXT, NULL)),
        mapped("documents", "a text, or a list of them", either(_SOME_TEXT, _DOCUMENTS)),
        mapped("text_1", "vLLM's name of `query`", either(TEXT, items(TEXT))),
        mapped("text_2", "vLLM's name of `documents`", either(TEXT, items(TEXT))),
        mapped("queries", "another name of `query`", either(TEXT, items(TEXT))),
        mapped("input", "another name of `documents`", either(TEXT, items(TEXT))),
        mapped(
            "activation",
            "function on the outputs of the model's head, `none` for rewards",
            either(choice(*ACTIVATIONS), NULL),
        ),
        _TRUNCATE,
        *_COMMON,
    ),
    own=("model",),
    not_taken=_NOT_TAKEN,
)
RERANKING = Body(
    "RerankRequest",
    fields=(
        mapped("query", "what the documents are ranked by", _SOME_TEXT),
        mapped("documents", "texts, or objects with a `text`", _DOCUMENTS),
        mapped("top_n", "return only the best so many", {"type": "integer", "minimum": 1}),
        mapped("return_documents", "whether each result repeats its document", FLAG),
        mapped("truncate", "as in `/v1/score`; also Cohere's `NONE`, `START` and `END`", TEXT),
        taken("activation", "as in `/v1/score`", either(choice(*ACTIVATIONS), NULL)),
        *_COMMON,
    ),
    own=("model",),
    required=("query", "documents"),
    not_taken=_NOT_TAKEN,
)
