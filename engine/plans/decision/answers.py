"""From the log probabilities of labels to answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .spec import Question


@dataclass(frozen=True, slots=True)
class Reading:
    """The labels as the model read them once, in the order of the question's options."""

    log_probs: Sequence[float]
    #: Whether the likeliest of all tokens was a label.
    argmax_is_label: bool

    @property
    def label_mass(self) -> float:
        """Probability of all labels together."""
        return sum(map(math.exp, self.log_probs))

    @property
    def probabilities(self) -> list[float]:
        """The options' shares of that, which add up to 1."""
        most = max(self.log_probs)
        weights = [math.exp(each - most) for each in self.log_probs]
        return [each / sum(weights) for each in weights]


def corrected(probabilities: Sequence[float], prior: Sequence[float]) -> list[float]:
    """Return probabilities divided by those without a state, scaled to add up to 1."""
    weights = [each / max(before, 1e-12) for each, before in zip(probabilities, prior, strict=True)]
    return [each / sum(weights) for each in weights]


def make_answer(
    question: Question,
    readings: Sequence[Reading],
    priors: Sequence[Reading],
    min_confidence: float | None,
) -> dict[str, Any]:
    """Return the answer to a question, as `Answer` of a job's result.

    Args:
        question: The question.
        readings: One per order of its options.
        priors: The same without the state; empty if they are not corrected for.
        min_confidence: Below it the answer has `low_confidence`.
    """
    rows = [each.probabilities for each in readings]
    if priors:
        rows = [
            corrected(row, prior.probabilities) for row, prior in zip(rows, priors, strict=True)
        ]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    best = max(range(len(means)), key=means.__getitem__)
    answer: dict[str, Any] = {
        "type": question.type,
        "answer": question.options[best],
        "probabilities": dict(zip(question.options, means, strict=True)),
        "confidence": confidence(question.type, means, best),
        "label_mass": sum(each.label_mass for each in readings) / len(readings),
        "argmax_is_label": all(each.argmax_is_label for each in readings),
    }
    if question.type == "score":
        answer["score"] = sum(level * each for level, each in enumerate(means))
    if min_confidence is not None:
        answer["low_confidence"] = answer["confidence"] < min_confidence
    return answer


def confidence(kind: str, probabilities: Sequence[float], best: int) -> float:
    """Return 0 for a uniform answer and 1 for a certain one; as transformers defines it.

    Args:
        kind: `score` counts how far the levels lie from the likeliest one, in units of a uniform
            answer's distance from the middle; the others compare the likeliest option with chance.
        probabilities: Of the options.
        best: The likeliest.
    """
    num_options = len(probabilities)
    if num_options == 1:
        return 1.0
    if kind != "score":
        return max(0.0, (probabilities[best] - 1 / num_options) / (1 - 1 / num_options))
    middle = (num_options - 1) / 2
    uniform = sum(abs(level - middle) for level in range(num_options)) / num_options
    distance = sum(each * abs(level - best) for level, each in enumerate(probabilities))
    return max(0.0, 1 - distance / uniform)


def unsure(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the ids of the answers whose confidence is too low."""
    return [name for name, answer in answers.items() if answer.get("low_confidence")]
