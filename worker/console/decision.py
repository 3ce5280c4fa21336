"""The questions of a decision and what the model answered, as the page of a job shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.producer.result_sections import Answer
from batchmill.producer.results import JobResult


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a question."""

    name: str
    #: What the job says about it; empty if nothing.
    description: str
    #: None before the answer.
    probability: float | None
    is_answer: bool


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """One question."""

    id: str
    instructions: str
    options: list[Option]
    #: None before the job's end.
    answer: Answer | None


def asked_questions(document: Mapping[str, Any], result: JobResult | None) -> list[AskedQuestion]:
    """Return the questions of a job's document with their answers; none if it is no decision."""
    decision = document.get("decision")
    questions = decision.get("questions") if isinstance(decision, dict) else None
    if not isinstance(questions, dict):
        return []
    answers = {} if result is None or result.decision is None else result.decision.answers
    return [
        _question(name, question, answers.get(name))
        for name, question in questions.items()
        if isinstance(question, dict)
    ]


def _question(name: str, question: Mapping[str, Any], answer: Answer | None) -> AskedQuestion:
    described = _described(question)
    if answer is not None:
        described |= {each: "" for each in answer.probabilities if each not in described}
    options = [
        Option(
            option,
            description,
            None if answer is None else answer.probabilities.get(option),
            answer is not None and option == answer.answer,
        )
        for option, description in described.items()
    ]
    return AskedQuestion(name, _text(question.get("instructions")), options, answer)


def _described(question: Mapping[str, Any]) -> dict[str, str]:
    """Return the descriptions of the options: names of a choice, levels of a score, yes and no."""
    criteria = question.get("criteria")
    if isinstance(criteria, list):
        return {str(level): _text(text) for level, text in enumerate(criteria)}
    known = criteria if isinstance(criteria, dict) else {}
    names = ("yes", "no") if question.get("type") == "yes_no" else tuple(known)
    return {name: _text(known.get(name)) for name in names}


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return json.dumps(content, ensure_ascii=False)
