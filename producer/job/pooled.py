"""Embedding and scoring jobs: texts that become vectors or scores instead of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from batchmill.engine.contract.kinds import Kind
from batchmill.engine.contract.limits import MAX_PROMPT_BYTES, MAX_PROMPT_TOKENS
from batchmill.engine.contract.pooling import MAX_DIMENSIONS, MAX_INPUTS

from .field_checks import check_utf8, optional
from .kinds import KindSection

#: Numbers of a vector whose size is not known before it is computed.
_TYPICAL_DIMENSIONS = 1024
#: Labels of a classification head; rerankers have one.
_TYPICAL_LABELS = 16
#: Of a number in base64, and of each input in the result.
_NUMBER_BYTES = 6
_INPUT_BYTES = 8
_TOKEN_BYTES = 4

PooledInput = str | list[int]


def _check_inputs(given: Any) -> Any:
    """Return one input or several as a list. By hand: a union's error would name every branch."""
    if isinstance(given, tuple):
        given = list(given)
    if isinstance(given, str) or _is_token_ids(given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("must be a text, a list of token ids, or a list of these; give at least 1")
    if len(given) > MAX_INPUTS:
        raise ValueError(
            f"has {len(given)} inputs, the limit is {MAX_INPUTS}; send the others as another job"
        )
    for each in given:
        _check_input(each)
    return given


def _check_input(each: Any) -> Any:
    if isinstance(each, str):
        if not each:
            raise ValueError("has an empty text; give each at least one character")
        check_utf8(each)
    elif not _is_token_ids(each):
        raise ValueError("must hold texts, or lists of token ids: integers from 0 to 2**32 - 1")
    return each


def _is_token_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_PROMPT_TOKENS
        and all(type(each) is int and 0 <= each < 2**32 for each in value)
    )


_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
_Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_BYTES)]
#: One input or several, read as a list.
Inputs = Annotated[
    list[Any],
    BeforeValidator(
        _check_inputs,
        json_schema_input_type=_Text
        | _TokenIds
        | Annotated[list[_Text | _TokenIds], Field(min_length=1, max_length=MAX_INPUTS)],
    ),
]


def num_bytes_of(inputs: Sequence[Any]) -> int:
    """Return the bytes of inputs; of a token as of four characters."""
    return sum(
        len(each.encode()) if isinstance(each, str) else _TOKEN_BYTES * len(each) for each in inputs
    )


Truncate = Literal["start", "end"]


class Embedding(KindSection):
    """Texts to embed. docs/embeddings.md says how the vectors are made."""

    kind: ClassVar[Kind] = Kind.EMBED

    input: Inputs = Field(repr=False)
    """A text, its token ids, or a list of these. Each becomes one vector."""

    pooling: Literal["last", "mean", "cls"] | None = optional(None)
    """Which of the model's final states make the vector: that of the last token, the mean over all
    tokens, or that of the first token (encoders only). If it is missing, what the model's files
    say, and else the last."""

    dimensions: int | None = optional(None, ge=1, le=MAX_DIMENSIONS)
    """Keep only the first so many numbers of each vector, for models that were trained for it."""

    normalize: bool | None = optional(None)
    """Scale each vector to length 1, which is the default."""

    truncate: Truncate | None = optional(None)
    """Which side of an input is cut that exceeds the model's length. If it is missing, such an
    input is refused."""

    encoding_format: Literal["float", "base64"] | None = optional(None)
    """How lines of results and HTTP responses hold the vectors: as numbers, which is the default,
    or as base64 of little-endian float32, a third of their size."""

    @property
    def num_input_bytes(self) -> int:
        """Bytes of all inputs."""
        return num_bytes_of(self.input)

    @property
    def num_output_tokens(self) -> int:
        """None is generated."""
        return 0

    @property
    def num_result_bytes(self) -> int:
        """Bytes of the vectors, of a usual size if the job does not say it."""
        size = self.dimensions or _TYPICAL_DIMENSIONS
        return len(self.input) * (_NUMBER_BYTES * size + _INPUT_BYTES)


class Scoring(KindSection):
    """Texts to score, alone or against a query. docs/embeddings.md says how."""

    kind: ClassVar[Kind] = Kind.SCORE

    input: Inputs = Field(repr=False)
    """A text, its token ids, or a list of these. Each gets scores of its own."""

    query: Annotated[Any, BeforeValidator(_check_input, json_schema_input_type=_Text)] | None = (
        optional(None, repr=False)
    )
    """What the inputs are scored against, as documents. If it is missing, each is scored alone, by
    a model with a classification head."""

    activation: Literal["sigmoid", "softmax", "none"] | None = optional(None)
    """Function on the outputs of the model's head. If it is missing, the one that belongs to the
    model."""

    truncate: Truncate | None = optional(None)
    """Which side of an input is cut if it, with its query, exceeds the model's length. If it is
    missing, such an input is refused."""

    @property
    def num_input_bytes(self) -> int:
        """Bytes of all inputs, and of the query with each of them."""
        query = [] if self.query is None else [self.query]
        return num_bytes_of(self.input) + num_bytes_of(query) * len(self.input)

    @property
    def num_output_tokens(self) -> int:
        """None is generated."""
        return 0

    @property
    def num_result_bytes(self) -> int:
        """Bytes of the scores."""
        return len(self.input) * (_NUMBER_BYTES * _TYPICAL_LABELS + _INPUT_BYTES)
