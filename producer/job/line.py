"""One line of a batch or bulk file: its name, the shape of its result and the job it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchmill.producer.errors import JobRejected

from .document import GenerationJob

#: The longest `custom_id`.
MAX_ID_CHARS = 512


class LineKind(StrEnum):
    """Whose shape the answer has."""

    CHAT = "/v1/chat/completions"
    TEXT = "/v1/completions"


@dataclass(frozen=True, slots=True)
class BulkLine:
    """One record of the input, as its answer names it.

    Attributes:
        number: its place in the input, from 1.
        custom_id: the caller's name for it, or `line-<number of its line>`.
        kind: the shape of its answer.
        job: what it asks for; None where it is wrong.
        problem: what is wrong.
    """

    number: int
    custom_id: str
    kind: LineKind
    job: GenerationJob | None
    problem: JobRejected | None = None
