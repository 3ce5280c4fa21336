"""Steering of a job: which of the operator's vectors is added to the hidden states, and how."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from batchmill.engine.contract.steering import MAX_LAYER, MAX_STRENGTH

from .field_checks import STRICT, optional
from .field_types import AdapterName

_Layer = Annotated[int, Field(ge=0, le=MAX_LAYER)]


class Steering(BaseModel):
    """A steering vector, its strength, and the layers in which it is added."""

    model_config = STRICT

    name: AdapterName
    """Name of the vector, which the operator has added."""

    strength: float = optional(1.0, ge=-MAX_STRENGTH, le=MAX_STRENGTH)
    """Factor of the vector; a negative one steers the other way."""

    layers: Annotated[list[_Layer], Field(min_length=2, max_length=2)] | None = optional(None)
    """First and last layer, counted from 0, after which it is added. If it is missing, all that
    the vector has."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.strength == 0:
            raise ValueError("strength 0 has no effect; leave steering out")
        if self.layers is not None and self.layers[0] > self.layers[1]:
            raise ValueError(
                f"layers is {self.layers}; the first layer must not be above the last one"
            )
        return self
