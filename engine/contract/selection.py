"""Selecting one of several samples by a decision question about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .decision import check_question, read_question, text_of
from .errors import ContractError

#: Field of a job, and the name of its plan.
SELECT: Final = "select"
#: Types of a question whose answers have an order.
RANKED_TYPES: Final = ("yes_no", "score")


def read_selection_question(given: Any) -> dict[str, Any]:
    """Return the question that ranks samples, in our own form.

    Args:
        given: A question of a decision, or the text of a yes_no question.

    Raises:
        ContractError: it is not one, or its answers have no order.
    """
    if isinstance(given, str):
        given = {"type": "yes_no", "instructions": given}
    if not isinstance(given, Mapping):
        raise ContractError("question must be a text, or an object with a type")
    question = read_question(given)
    kind = question.get("type")
    if kind not in RANKED_TYPES:
        raise ContractError(
            f"question.type must be one of {', '.join(RANKED_TYPES)}: the options of others have "
            "no order"
        )
    criteria = question.get("criteria")
    check_question("select", kind, criteria)
    if not criteria and not text_of(question.get("instructions")).strip():
        raise ContractError("question is empty: say what is asked about each sample")
    return question
