"""A decision as the engine reads it from a job's field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.engine.contract import decision as contract
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.errors import RequestError


@dataclass(frozen=True, slots=True)
class Question:
    """One question, with its options in the order in which they were given."""

    question_id: str
    #: `choice`, `score` or `yes_no`.
    type: str
    instructions: Any
    #: Names of a choice; `yes` and `no`; or the numbers of the levels.
    options: tuple[str, ...]
    #: One per option; text, other JSON, or None.
    descriptions: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class DecisionSpec:
    """Questions about one state, and how they are asked."""

    state: Any
    instructions: str | None
    questions: tuple[Question, ...]
    rotations: int
    has_prior: bool
    min_confidence: float | None
    on_low_confidence: str
    max_tokens: int
    template_kwargs: Mapping[str, Any]


def read_decision(section: Mapping[str, Any]) -> DecisionSpec:
    """Return the decision in a job's field, in any of its spellings.

    Raises:
        RequestError: `invalid_request`.
    """
    try:
        read = contract.read_spellings(section)
        questions = read.get("questions")
        if read.get("state") is None or not isinstance(questions, Mapping) or not questions:
            raise ContractError("decision needs a state and at least one question")
        contract.check_state(read["state"])
        return DecisionSpec(
            state=read["state"],
            instructions=read.get("instructions"),
            questions=tuple(_question(name, each) for name, each in questions.items()),
            rotations=read.get("rotations") or 1,
            has_prior=bool(read.get("prior_correction")),
            min_confidence=read.get("min_confidence"),
            on_low_confidence=read.get("on_low_confidence") or "flag",
            max_tokens=read.get("max_tokens") or contract.DEFAULT_GENERATED_TOKENS,
            template_kwargs=read.get("chat_template_kwargs") or {},
        )
    except ContractError as refusal:
        raise RequestError.of(refusal) from None


def _question(name: str, question: Any) -> Question:
    kind = question.get("type") if isinstance(question, Mapping) else None
    if kind not in contract.QUESTION_TYPES:
        raise ContractError(
            f"questions.{name}.type must be one of {', '.join(contract.QUESTION_TYPES)}"
        )
    criteria = question.get("criteria")
    contract.check_question(name, kind, criteria)
    if kind == "yes_no":
        described: dict[str, Any] = {each: (criteria or {}).get(each) for each in contract.YES_NO}
    elif kind == "score":
        described = {str(level): text for level, text in enumerate(criteria)}
    else:
        described = dict(criteria)
    return Question(
        name, kind, question.get("instructions"), tuple(described), tuple(described.values())
    )
