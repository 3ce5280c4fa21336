"""Detection: how unlikely the tokens of a text are to have met a key's noise by chance.

Each token adds -log(u), where u is the uniform number of its noise under the key. Without the key's
influence this is an exponential variable of mean 1, and the sum over n tokens a Gamma variable of
shape n: the p-value is exact, whatever the text is about. Sampling with the key prefers small u.

Source: Aaronson and Kirchner 2022; the p-value as in Fernandez et al. 2023, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .key import CONTEXT_WIDTH, MARKED_POSITION, WatermarkKey, surprise


@dataclass(frozen=True, slots=True)
class WatermarkDetection:
    """The result of looking for one key in one or more texts."""

    #: Name of the key.
    key: str
    #: Tokens of the texts.
    num_tokens: int
    #: Tokens that count: those after a context that occurred for the first time.
    num_scored: int
    #: Sum of their -log(u); about `num_scored` in a text without the mark.
    score: float

    @property
    def p_value(self) -> float:
        """Probability of such a sum, or a larger one, in a text without the mark."""
        return gamma_tail(self.num_scored, self.score)


class Detector:
    """Collects the evidence for one key over any number of texts.

    A context counts once over all of them, because its noise is the same each time.
    """

    def __init__(self, key: WatermarkKey) -> None:
        self._key = key
        self._seen: set[tuple[int, ...]] = set()
        self._num_tokens = 0
        self._num_scored = 0
        self._score = 0.0

    def add(self, token_ids: Sequence[int]) -> None:
        """Add the tokens of one text."""
        self._num_tokens += len(token_ids)
        for place in range(CONTEXT_WIDTH, len(token_ids)):
            context = tuple(token_ids[place - CONTEXT_WIDTH : place])
            if context in self._seen:
                continue
            self._seen.add(context)
            self._num_scored += 1
            self._score += surprise(self._key.seed_of(context), MARKED_POSITION, token_ids[place])

    @property
    def detection(self) -> WatermarkDetection:
        """What was found so far."""
        return WatermarkDetection(self._key.name, self._num_tokens, self._num_scored, self._score)


def detect(key: WatermarkKey, token_ids: Sequence[int]) -> WatermarkDetection:
    """Look for a key in the tokens of one text."""
    detector = Detector(key)
    detector.add(token_ids)
    return detector.detection


def gamma_tail(shape: int, value: float) -> float:
    """Return P(X >= value) for a Gamma variable X of integer shape and scale 1.

    It is exp(-value) times the sum of value**k / k! for k < shape. Terms are added relative to the
    largest, so that neither thousands of tokens nor tiny probabilities leave the range of floats;
    below the smallest float it is 0.
    """
    if shape <= 0 or value <= 0:
        return 1.0
    # The terms rise up to k = value and fall after it.
    largest = min(shape - 1, int(value))
    log_value = math.log(value)
    total, term = 1.0, 1.0
    for k in range(largest, 0, -1):
        term *= k / value
        total += term
        if term < total * 1e-18:
            break
    term = 1.0
    for k in range(largest + 1, shape):
        term *= value / k
        total += term
        if term < total * 1e-18:
            break
    log_tail = largest * log_value - math.lgamma(largest + 1) - value + math.log(total)
    return min(1.0, math.exp(log_tail)) if log_tail > -745 else 0.0
