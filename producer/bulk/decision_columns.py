"""`DecisionColumns`: the cells that a decision fills: per question its answer and confidence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.engine.contract.decision import YES_NO, read_spellings
from batchmill.producer.files.table import Column

from .result_columns import unique_columns


@dataclass(frozen=True, slots=True)
class QuestionColumns:
    """The columns of one question.

    Attributes:
        question_id: names them.
        is_score: whether it has a mean level.
        options: those whose probabilities have columns; empty for none.
        has_text: whether the text of an unsure answer has one.
    """

    question_id: str
    is_score: bool
    options: tuple[str, ...] = ()
    has_text: bool = False

    def columns(self) -> list[Column]:
        """Return the columns, the answer first."""
        name = self.question_id
        columns = [Column(name), Column(f"{name}.confidence", "number")]
        if self.is_score:
            columns.append(Column(f"{name}.score", "number"))
        columns += [Column(f"{name}.p.{option}", "number") for option in self.options]
        if self.has_text:
            columns.append(Column(f"{name}.text"))
        return columns

    def cells(self, answer: Mapping[str, Any]) -> list[Any]:
        """Return the cells of an answer; an empty one has none."""
        cells = [answer.get("answer"), answer.get("confidence")]
        if self.is_score:
            cells.append(answer.get("score"))
        probabilities = answer.get("probabilities") or {}
        cells += [probabilities.get(option) for option in self.options]
        if self.has_text:
            cells.append(answer.get("text"))
        return cells


@dataclass(frozen=True, slots=True)
class DecisionColumns:
    """The columns of the questions of a run, in their order."""

    questions: tuple[QuestionColumns, ...]

    def columns(self, taken: Collection[str]) -> list[Column]:
        """Return the columns; see `ResultColumns.columns`."""
        columns = [column for each in self.questions for column in each.columns()]
        columns += [Column("prompt_tokens", "integer"), Column("error")]
        return unique_columns(columns, taken)

    def cells(self, line: Mapping[str, Any] | None) -> list[Any]:
        """Return the cells of a line of the output or the error file; None is an empty one."""
        line = line or {}
        body = (line.get("response") or {}).get("body") or line.get("partial") or {}
        answers = body.get("answers") or {}
        cells: list[Any] = []
        for each in self.questions:
            cells += each.cells(answers.get(each.question_id) or {})
        error = line.get("error")
        return [
            *cells,
            (body.get("usage") or {}).get("prompt_tokens"),
            f"{error['code']}: {error['message']}" if error else None,
        ]


def decision_columns(decision: Mapping[str, Any], *, with_probabilities: bool) -> DecisionColumns:
    """Return the columns of a decision's questions.

    Args:
        decision: the field of a job, without its state, in any spelling.
        with_probabilities: whether each option has a column.
    """
    read = read_spellings(decision)
    has_text = read.get("on_low_confidence") == "generate"
    return DecisionColumns(
        tuple(
            QuestionColumns(
                name,
                question.get("type") == "score",
                _options(question) if with_probabilities else (),
                has_text,
            )
            for name, question in read["questions"].items()
        )
    )


def _options(question: Mapping[str, Any]) -> tuple[str, ...]:
    criteria = question.get("criteria")
    if question.get("type") == "yes_no":
        return YES_NO
    if question.get("type") == "score":
        return tuple(map(str, range(len(criteria or ()))))
    return tuple(criteria or ())
