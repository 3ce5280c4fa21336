"""Beam search over token ids: which sequences go on, which are finished, and when it ends.

Source: the search of transformers (`GenerationMixin._beam_search`), whose tokens this one has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

#: Log probabilities of the likeliest next tokens of a beam, by token.
Candidates: TypeAlias = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Beam:
    """A sequence and its score: the sum of its log probabilities, or that scaled by its length."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(slots=True)
class BeamSearch:
    """The state of one search.

    Attributes:
        width: Sequences that go on, and finished ones that are kept.
        ends: Tokens that end a sequence.
        max_tokens: Most tokens of one.
        length_penalty: Exponent of the length by which a finished score is divided.
        early_stopping: As in transformers: False, True or "never".
        running: The sequences that go on, the best first.
        finished: The best finished ones, the best first.
        is_done: Whether the search has ended.
    """

    width: int
    ends: Collection[int]
    max_tokens: int
    length_penalty: float
    early_stopping: bool | str
    running: list[Beam] = field(default_factory=lambda: [Beam((), 0.0)])
    finished: list[Beam] = field(default_factory=list)
    is_done: bool = False

    @property
    def num_candidates(self) -> int:
        """How many of its likeliest next tokens each running sequence must be given.

        At most `width` of them go on, and every other one ends the sequence.
        """
        return self.width + len(self.ends)

    def advance(self, candidates: Sequence[Candidates]) -> None:
        """Take one step.

        Args:
            candidates: Of each running sequence, in order.
        """
        ranked = sorted(
            (
                Beam((*beam.token_ids, token_id), beam.score + log_prob)
                for beam, each in zip(self.running, candidates, strict=True)
                for token_id, log_prob in each.items()
            ),
            key=lambda beam: -beam.score,
        )
        num_tokens = len(self.running[0].token_ids) + 1
        is_last = num_tokens >= self.max_tokens
        ended = [
            beam for beam in ranked[: self.width] if is_last or beam.token_ids[-1] in self.ends
        ]
        self._finish(ended, num_tokens)
        going_on = [beam for beam in ranked if beam.token_ids[-1] not in self.ends]
        self.running = going_on[: self.width]
        self.is_done = is_last or not self.running or self._cannot_improve(num_tokens)

    def _finish(self, ended: Sequence[Beam], num_tokens: int) -> None:
        if self.early_stopping is True and len(self.finished) == self.width:
            return
        scale = math.pow(num_tokens, self.length_penalty)
        scaled = [Beam(beam.token_ids, beam.score / scale) for beam in ended]
        # The earlier one of equals stays first.
        self.finished = sorted([*self.finished, *scaled], key=lambda beam: -beam.score)[
            : self.width
        ]

    def _cannot_improve(self, num_tokens: int) -> bool:
        """Return whether the running sequences are not worth continuing."""
        if len(self.finished) < self.width:
            return False
        if self.early_stopping is True:
            return True
        is_exact = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_tokens if is_exact else num_tokens
        best = self.running[0].score / math.pow(length, self.length_penalty)
        return best <= self.finished[-1].score
