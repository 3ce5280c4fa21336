"""The sections of a result with vectors or scores."""

from __future__ import annotations

import base64
import sys
from array import array
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Unknown fields are ignored: a worker of a later version may add some.
_CONFIG = ConfigDict(
    extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
)


def decode_rows(data: str, count: int) -> list[list[float]]:
    """Return the rows of numbers in base64 of little-endian float32.

    Args:
        data: All numbers, row after row.
        count: The number of rows.

    Raises:
        ValueError: the data does not hold that many rows of one size.
    """
    numbers = array("f")
    numbers.frombytes(base64.b64decode(data, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    if count < 1 or len(numbers) % count:
        raise ValueError(f"{len(numbers)} numbers are not {count} rows of one size")
    size = len(numbers) // count
    return [numbers[start : start + size].tolist() for start in range(0, len(numbers), size)]


class EmbeddingResult(BaseModel):
    """The vectors of an embedding job."""

    model_config = _CONFIG

    count: int
    """Vectors, one for each input, in their order."""

    dimensions: int
    """Numbers of each vector."""

    data: str = Field(repr=False)
    """All numbers, vector after vector: base64 of little-endian float32. A third of the size that
    JSON numbers would have."""

    prompt_tokens: list[int] = Field(default_factory=list, repr=False)
    """Tokens of each input."""

    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """What lines of results and HTTP responses hold, if the job asked for it; `data` is base64 in
    any case."""

    @cached_property
    def vectors(self) -> list[list[float]]:
        """The vectors as lists of numbers."""
        return decode_rows(self.data, self.count)

    def array(self) -> Any:
        """Return the vectors as a numpy array, [count, dimensions] float32; numpy is needed."""
        import numpy as np

        numbers = np.frombuffer(base64.b64decode(self.data), dtype="<f4")
        return numbers.reshape(self.count, self.dimensions)

    def encoded(self, index: int) -> str:
        """Return one vector as base64 of little-endian float32."""
        start = 4 * self.dimensions * index
        return base64.b64encode(
            base64.b64decode(self.data)[start : start + 4 * self.dimensions]
        ).decode()


class ScoringResult(BaseModel):
    """The scores of a scoring job."""

    model_config = _CONFIG

    count: int
    """Inputs that were scored."""

    labels: list[str]
    """What the scores of an input are: the labels of the model's classification head, or `cosine`
    for the similarity of two embeddings."""

    data: str = Field(repr=False)
    """All scores, input after input: base64 of little-endian float32."""

    prompt_tokens: list[int] = Field(default_factory=list, repr=False)
    """Tokens of each input, with the query's if both are read together."""

    @cached_property
    def scores(self) -> list[list[float]]:
        """For each input one score per label."""
        return decode_rows(self.data, self.count)

    @property
    def relevance(self) -> list[float]:
        """One number per input: the score of a model with one label, and of the last of several."""
        return [each[-1] for each in self.scores]

    @property
    def ranking(self) -> list[int]:
        """Indices of the inputs, the most relevant first; equal ones in their order."""
        relevance = self.relevance
        return sorted(range(self.count), key=lambda index: -relevance[index])
