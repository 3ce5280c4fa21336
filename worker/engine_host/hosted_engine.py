"""What the engine process needs of an engine: the seam between the real one and the stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from .messages import AddRequest, DraftCounts, EngineLoad, Finished, NewOutput, Ready


class RequestRefused(Exception):
    """The engine does not take a request, now or ever; the others are not affected.

    Attributes:
        code: machine-readable, in OpenAI's spelling where it has one.
        message: for people; never prompt or output text.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class StepOutput:
    """What one step brought."""

    new_outputs: list[NewOutput] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)


class HostedEngine(Protocol):
    """One engine, loaded and warm."""

    def describe(self) -> Ready:
        """Return its identity and limits."""

    def add(self, request: AddRequest) -> None:
        """Queue a request.

        Raises:
            RequestRefused: it cannot be run.
        """

    def abort(self, request_id: str) -> None:
        """End a request early; the next step reports it. One that is not known is ignored."""

    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""

    def step(self) -> StepOutput:
        """Compute one batch."""

    def load(self) -> EngineLoad:
        """Return how full it is."""

    def drafts(self) -> DraftCounts | None:
        """Return what prompt lookup came to, or None where it is off."""

    def prepare(self, timeout_s: float) -> bool:
        """Use idle time for what makes later steps faster.

        Args:
            timeout_s: Seconds after which to return.

        Returns:
            Whether there is nothing left to prepare.
        """
