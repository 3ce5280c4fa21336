"""How one of a job's several samples is selected: by likelihood, a vote, or a decision."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.selection import read_selection_question

from .decision import Question, answer_bytes
from .field_checks import STRICT, Text, optional

#: Ways that other versions may have; each is refused by name.
_UNSUPPORTED: Final = ("reward",)
MAX_FIELD_CHARS: Final = 256
_BYTES_PER_TOKEN: Final = 4


def _check_way(by: Any) -> Any:
    if by in _UNSUPPORTED:
        message = (
            f"select.by is {by}, which this version does not support: use likelihood, vote or "
            "decision"
        )
        raise PydanticCustomError(
            "unsupported_parameter", "{message}", {"message": message, "param": "select"}
        )
    return by


def _read_question(given: Any) -> Any:
    if isinstance(given, Question):
        return given
    try:
        return read_selection_question(given)
    except ContractError as refusal:
        raise ValueError(refusal.message) from None


class Selection(BaseModel):
    """Selects one of the `n` samples; all of them stay in the result."""

    model_config = STRICT

    by: Annotated[Literal["likelihood", "vote", "decision"], BeforeValidator(_check_way)]
    """`likelihood`: the sample whose tokens have the highest mean log probability in the model's
    own distribution. `vote`: the first of the samples that give the most frequent answer
    (self-consistency). `decision`: the sample for which the model answers `question` best."""

    field: Annotated[Text, Field(min_length=1, max_length=MAX_FIELD_CHARS)] | None = None
    """Of a vote: the field of the sample's JSON object that is its answer, with dots into
    objects, such as `result.answer`. Without it, the whole text is."""

    question: Annotated[Question, BeforeValidator(_read_question)] | None = optional(
        None, repr=False
    )
    """Of a decision: the question about each sample, as text if the answer is yes or no, or a
    question of a decision with the type `yes_no` or `score`. The sample with the highest
    probability of yes, or with the highest mean level, is selected."""

    @model_validator(mode="after")
    def _check_field_is_for_votes(self) -> Self:
        if self.field is not None and self.by != "vote":
            raise ValueError(f"field has no effect by {self.by}; leave it out, or use vote")
        if (self.question is not None) != (self.by == "decision"):
            if self.by == "decision":
                raise ValueError("a selection by decision needs a question; give one")
            raise ValueError(f"question has no effect by {self.by}; leave it out, or use decision")
        return self

    def num_judging_tokens(self, num_prompt_tokens: int, num_sample_tokens: int, n: int) -> int:
        """Return about how many tokens the model reads and writes to select one of `n` samples."""
        if self.question is None:
            return 0
        num_question_tokens = len(self.question.model_dump_json()) // _BYTES_PER_TOKEN + 1
        return n * (num_prompt_tokens + num_sample_tokens + num_question_tokens + 1)

    @property
    def num_result_bytes_per_sample(self) -> int:
        """Bytes that the answer about one sample takes in the result, about."""
        return 0 if self.question is None else answer_bytes(self.question)
