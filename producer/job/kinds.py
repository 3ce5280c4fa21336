"""What the fields of a job that make it one of another kind have in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel

from batchmill.engine.contract.kinds import Kind

from .field_checks import STRICT
from .media_parts import MediaPart


class KindSection(BaseModel):
    """The input and the parameters of a job of a kind other than `generate`.

    The queue charges tenants and reserves memory by these estimates, before anything has run.
    """

    model_config = STRICT

    kind: ClassVar[Kind]

    @property
    def media(self) -> list[MediaPart]:
        """The pictures and sounds of its input, in order."""
        return []

    @property
    def num_input_bytes(self) -> int:
        """Bytes of all text that the model reads, shared beginnings once."""
        raise NotImplementedError

    @property
    def num_output_tokens(self) -> int:
        """Tokens that it generates at most."""
        raise NotImplementedError

    @property
    def num_result_bytes(self) -> int:
        """Bytes that its section of the result takes at most, about."""
        raise NotImplementedError
