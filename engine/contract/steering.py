"""Steering vectors as a request names them: which, how strongly, and in which layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Largest strength in either direction.
MAX_STRENGTH: Final = 1000.0
#: Largest number of a layer.
MAX_LAYER: Final = 4095


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """What steers a request.

    Attributes:
        digest: Of the directions: it is this version, whatever it is called.
        strength: Factor of the directions; negative ones steer the other way.
        layers: First and last layer, from 0, whose direction is added; None is all.
    """

    digest: str
    strength: float = 1.0
    layers: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """Name of everything that it changes: no two keys share KV blocks."""
        first, last = self.layers or (0, MAX_LAYER)
        return f"{self.digest} {self.strength!r} {first}-{last}"
