"""The interface that the engine process uses: `RealEngine` and `StubEngine` implement it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .messages import (
    AddRequest,
    DraftCounts,
    EngineLoad,
    EngineWork,
    Finished,
    MediaCounts,
    NewOutput,
    OffloadCounts,
    Ready,
)


class RequestRefused(Exception):
    """The engine can never run a request; other requests are not affected.

    Attributes:
        code: machine-readable; OpenAI's code if it has one.
        message: for people; never prompt or output text.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class StepOutput:
    """The tokens and ends of one step."""

    new_outputs: list[NewOutput] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    #: State of plans to save, by request.
    plan_states: dict[str, bytes] = field(default_factory=dict)


class HostedEngine(Protocol):
    """One loaded and warm engine."""

    def describe(self) -> Ready:
        """Return the engine's identity and limits."""

    def add(self, request: AddRequest) -> None:
        """Queue a request.

        Raises:
            RequestRefused: the request cannot be run.
        """

    def set_draft_corpus(self, name: str, outputs: Sequence[Sequence[int]]) -> None:
        """Replace the outputs that requests of a corpus take draft tokens from."""

    def abort(self, request_id: str) -> None:
        """End a request early; the next step reports its end. Ignore an unknown request."""

    def has_unfinished(self) -> bool:
        """Return whether there is any request to compute or report."""

    def step(self) -> StepOutput:
        """Compute one batch."""

    def load(self) -> EngineLoad:
        """Return how full the engine is."""

    def drafts(self) -> DraftCounts | None:
        """Return the counts of draft tokens; None if prompt lookup is off and there were none."""

    def media_counts(self) -> MediaCounts | None:
        """Return the counts of pictures and sounds, or None if the model takes none."""

    def offload_counts(self) -> OffloadCounts | None:
        """Return the counts of KV in host memory, or None if none is kept there."""

    def take_work(self) -> EngineWork:
        """Return what was computed since the last call."""

    def prepare(self, timeout_s: float) -> bool:
        """Use idle time to make later steps faster.

        Args:
            timeout_s: Seconds after which to return.

        Returns:
            Whether there is nothing left to prepare.
        """
