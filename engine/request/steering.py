"""Steering vectors as requests and the decoder see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Steering:
    """What is added to the hidden states of a request; requests with one key share the object.

    Attributes:
        key: `SteeringSpec.key`, which the hashes of its KV blocks contain.
        vectors: Layer -> direction, [hidden] in the model's dtype and on its device. It is added to
            the hidden states after that layer.
        strength: Factor of the directions.
    """

    key: str
    vectors: Mapping[int, Tensor]
    strength: float
