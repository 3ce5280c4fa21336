"""A LoRA adapter as requests and the scheduler see it: an identity, a size, perhaps weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.kernels.ops.lora import LoraWeights


class Adapter:
    """One version of a LoRA adapter; all requests that name the version share the object.

    Attributes:
        digest: Of its configuration and weights: it is this version, whatever it is called.
        num_bytes: Memory that its weights take while it is resident.
        weights: Its matrices while it is resident; None otherwise.
        problem: Why its weights could not be read after its requests were taken in; None if they
            could, or were not read yet.
    """

    __slots__ = ("__weakref__", "digest", "num_bytes", "problem", "weights")

    def __init__(self, digest: str, num_bytes: int) -> None:
        self.digest = digest
        self.num_bytes = num_bytes
        self.weights: LoraWeights | None = None
        self.problem: str | None = None
