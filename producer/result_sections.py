"""The sections of a result that jobs of other kinds than `generate` make."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Unknown fields are ignored: a worker of a later version may add some.
_CONFIG = ConfigDict(
    extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
)


class Answer(BaseModel):
    """The answer to one question of a decision."""

    model_config = _CONFIG

    type: Literal["choice", "score", "yes_no"]
    """Type of the question."""

    answer: str
    """The likeliest option: the name of a choice, `yes` or `no`, or the number of a level, from
    0."""

    probabilities: dict[str, float]
    """Of each option; together 1."""

    confidence: float
    """0 for a uniform answer, 1 for a certain one. Of a choice and a yes_no: how far the
    likeliest option's probability is above chance. Of a score: how near the levels lie to the
    likeliest one."""

    score: float | None = Field(default=None, exclude_if=lambda score: score is None)
    """Of a score: the mean level, from 0."""

    label_mass: float
    """Probability that all labels had together in the model's whole vocabulary: where it is low,
    the model meant to say something else."""

    argmax_is_label: bool
    """Whether the model's likeliest token was a label, each time the question was asked."""

    low_confidence: bool = Field(default=False, exclude_if=lambda is_low: not is_low)
    """Whether the confidence is below the job's `min_confidence`."""

    text: str | None = Field(default=None, repr=False, exclude_if=lambda text: text is None)
    """What the model writes in answer to the question, with `on_low_confidence: generate`."""


class DecisionResult(BaseModel):
    """The answers of a decision."""

    model_config = _CONFIG

    answers: dict[str, Answer]
    """The answers by the ids of their questions."""

    num_prompts: int
    """Prompts that were read: one per question, rotation and prior."""
