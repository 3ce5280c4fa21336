"""One line of a batch or bulk file: its name, its job and the shape of its result."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchmill.producer.errors import JobRejected

from .decision import decision_and_job_fields
from .document import GenerationJob
from .field_checks import check_utf8

#: The longest `custom_id`.
MAX_ID_CHARS = 512


def check_custom_id(custom_id: object) -> str:
    """Return a caller's name for a line, if it can be one.

    Raises:
        JobRejected: it is not a text, is too long, or UTF-8 cannot encode it.
    """
    if not isinstance(custom_id, str) or len(custom_id) > MAX_ID_CHARS:
        raise JobRejected(
            f"custom_id: must be a string of at most {MAX_ID_CHARS} characters", param="custom_id"
        )
    try:
        return check_utf8(custom_id)
    except ValueError as error:
        raise JobRejected(f"custom_id: {error}; leave it out", param="custom_id") from None


class LineKind(StrEnum):
    """OpenAI's endpoint whose shape the result has."""

    CHAT = "/v1/chat/completions"
    TEXT = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    #: As in vLLM.
    SCORE = "/v1/score"
    #: Questions about a state; the path is SGLang's.
    DECIDE = "/v1/decisions"

    @classmethod
    def of_fields(cls, fields: Container[str]) -> LineKind:
        """Return the format of the result of a job with these fields."""
        for name, kind in _KIND_BY_FIELD.items():
            if name in fields:
                return kind
        return cls.TEXT


_KIND_BY_FIELD = {
    "messages": LineKind.CHAT,
    "embedding": LineKind.EMBEDDINGS,
    "scoring": LineKind.SCORE,
    "decision": LineKind.DECIDE,
}


def decision_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job from a body that has those of its decision beside them.

    Raises:
        JobRejected: `decision` is given as well.
    """
    if body.get("decision") is not None:
        raise JobRejected(
            "decision is the name of a job's field: give its fields by themselves", param="decision"
        )
    decision, others = decision_and_job_fields(body)
    return others | {"decision": decision}


@dataclass(frozen=True, slots=True)
class BulkLine:
    """One line of the input, checked.

    Attributes:
        number: Its place in the input, from 1.
        custom_id: The caller's name for it, or `line-<number>`.
        kind: The shape of its result.
        job: Its job; None if the line is wrong.
        problem: Why the line is refused; None if it is not.
        named_model: The model that the line itself names; the command may give another to all.
        gateway: JSON of what the gateway needs to answer in its caller's terms; empty for others.
    """

    number: int
    custom_id: str
    kind: LineKind
    job: GenerationJob | None
    problem: JobRejected | None = None
    named_model: str | None = None
    gateway: str = ""
