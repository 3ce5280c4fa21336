"""One line of a batch or bulk file: its name, its job and the shape of its result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchmill.producer.errors import JobRejected

from .document import GenerationJob

#: The longest `custom_id`.
MAX_ID_CHARS = 512


class LineKind(StrEnum):
    """OpenAI's endpoint whose shape the result has."""

    CHAT = "/v1/chat/completions"
    TEXT = "/v1/completions"


@dataclass(frozen=True, slots=True)
class BulkLine:
    """One line of the input, checked.

    Attributes:
        number: Its place in the input, from 1.
        custom_id: The caller's name for it, or `line-<number>`.
        kind: The shape of its result.
        job: Its job; None if the line is wrong.
        problem: Why the line is refused; None if it is not.
    """

    number: int
    custom_id: str
    kind: LineKind
    job: GenerationJob | None
    problem: JobRejected | None = None
