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


class TokenConfidence(BaseModel):
    """How sure the model was of one token of the output."""

    model_config = _CONFIG

    text: str
    """Text of the token; a part of a character is shown as a replacement character."""

    probability: float
    """Its probability in the model's own distribution."""

    entropy: float
    """Entropy of that distribution, in nats."""

    rank: int | None
    """1 for the likeliest token; None below the five likeliest."""

    margin: float
    """Its probability less that of the likeliest other token."""


class Alternative(BaseModel):
    """Another way that the output could have taken."""

    model_config = _CONFIG

    position: int
    """Place of the token in the output, from 0."""

    token: str
    """The token that was taken."""

    probability: float
    """Its probability."""

    other_token: str
    """The likeliest other one."""

    other_probability: float
    """Its probability."""

    text: str
    """That token and what the model continues it with, greedily."""


class Source(BaseModel):
    """A part of the input, and how much it mattered; figures are in nats."""

    model_config = _CONFIG

    source: str
    """`prompt`, `messages.<n>` or `documents.<n>`; the first and the last of several that are one
    part."""

    text: str = Field(repr=False)
    """The part."""

    leave_one_out: float
    """How far the output's log probability falls without this part."""

    weight: float
    """Its weight in a sparse linear fit over random ablations (ContextCite)."""


class Attribution(BaseModel):
    """How much the parts of the input mattered for the output."""

    model_config = _CONFIG

    segments: list[Source]
    """The parts, in order. The last one of the input, mostly the question, always stays."""

    top_k_drop: dict[str, float]
    """How far the output's log probability falls without the 1, 3 and 5 parts of most weight."""

    lds: float | None
    """Rank correlation of the fit with scores that it has not seen (linear datamodeling score)."""


class SampleGroup(BaseModel):
    """Samples that say the same."""

    model_config = _CONFIG

    text: str = Field(repr=False)
    """The first of them."""

    count: int
    """How many they are."""


class Uncertainty(BaseModel):
    """How much further samples differ."""

    model_config = _CONFIG

    num_samples: int
    """Further samples, at temperature 1."""

    groups: list[SampleGroup]
    """Samples that say the same."""

    match: Literal["exact", "embedding"] = "exact"
    """What is the same: texts that differ only in case, white space and punctuation at their ends,
    or those whose embeddings are as near as the job's `explain_similarity`."""

    entropy: float
    """Entropy over the groups, in nats."""

    agreement: float
    """Share of the samples that say the same as the output."""


class ExplanationUsage(BaseModel):
    """What an explanation took besides the job's own output; `JobResult.usage` has both."""

    model_config = _CONFIG

    num_requests: int
    """Requests to the engine."""

    prompt_tokens: int
    """Tokens of their prompts."""

    cached_tokens: int
    """Those among them that were shared."""

    completion_tokens: int
    """Tokens that they generated, and those of the output that they scored again."""

    @property
    def total_tokens(self) -> int:
        """All tokens, shared ones included: what the estimate before the job bounds."""
        return self.prompt_tokens + self.completion_tokens


class Explanation(BaseModel):
    """What explains an output, by the parts that the job asked for."""

    model_config = _CONFIG

    confidence: list[TokenConfidence] | None = Field(default=None, repr=False)
    """Per token of the output."""

    alternatives: list[Alternative] | None = Field(default=None, repr=False)
    """At the least certain places."""

    attribution: Attribution | None = None
    """None as well if the input has one part only, or the output no token."""

    uncertainty: Uncertainty | None = None
    """Over further samples."""

    usage: ExplanationUsage | None = None
    """What the explanation took."""


class BeamSearchResult(BaseModel):
    """What a beam search found besides its outputs."""

    model_config = _CONFIG

    scores: list[float]
    """Of each output, the best first: the sum of its log probabilities, divided by its length to
    the power of `length_penalty`."""

    num_beam_tokens: int
    """Tokens of all beams, also of those that were given up; they count as output in `usage`."""
