"""What a chat's `reasoning_effort` means for its model: variables of the template, or a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchmill.engine.contract.reasoning import BUDGETS, SWITCHES
from batchmill.engine.errors import RequestError

from .thoughts import writes_thoughts


def effort_kwargs(effort: str | None, template: str, model_name: str) -> Mapping[str, Any]:
    """Return the variables that tell a template about an effort.

    A template that has a variable `reasoning_effort` gets it as it is. Another one gets the switch
    that it has for thoughts, if any.

    Args:
        effort: One of `EFFORTS`, or None.
        template: The text of the chat template.
        model_name: For the error message.

    Raises:
        RequestError: `unsupported_parameter`: the model neither knows efforts nor has the markup of
            thoughts, so that the effort would be ignored.
    """
    if effort is None:
        return {}
    if _uses(template, "reasoning_effort"):
        return {"reasoning_effort": effort}
    if effort != "none" and not writes_thoughts(template):
        raise RequestError(
            "unsupported_parameter",
            f"the chat template of {model_name} has neither a variable reasoning_effort nor the "
            "markup of thoughts: leave reasoning_effort out, or set it to none",
        )
    return {name: effort != "none" for name in SWITCHES if _uses(template, name)}


def effort_budget(effort: str | None, template: str) -> int | None:
    """Return the tokens that an effort leaves for thoughts.

    Returns:
        None sets no limit: the template takes the effort itself, or the model has no thoughts.
    """
    if effort is None or _uses(template, "reasoning_effort") or not writes_thoughts(template):
        return None
    return BUDGETS[effort]


def _uses(template: str, name: str) -> bool:
    """Return whether a template reads a variable: in a tag, and not as the part of another name."""
    used = rf"(?<![\w.'\"|])(?<!\[)\b{re.escape(name)}\b(?!['\"(=]| = )"
    return any(re.search(used, tag) for tag in re.findall(r"\{[%{].*?[%}]\}", template, re.DOTALL))
