"""How much a model thinks before it answers: the efforts, and what they mean in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from .errors import ContractError

#: OpenAI's names.
Effort = Literal["none", "minimal", "low", "medium", "high"]
EFFORTS: Final[tuple[str, ...]] = get_args(Effort)
#: Tokens of thoughts by effort, for models whose chat template does not take an effort.
BUDGETS: Final[Mapping[str, int]] = {
    "none": 0,
    "minimal": 128,
    "low": 1024,
    "medium": 2048,
    "high": 4096,
}
MAX_THINKING_TOKENS: Final = 2**31 - 1
#: Of a chat template: the variables that turn thoughts on and off.
SWITCHES: Final = ("enable_thinking", "thinking")


def check_effort(effort: object, template_kwargs: Mapping[str, Any]) -> None:
    """Check an effort, and that the variables of the template do not say something else.

    Raises:
        ContractError: it is unknown, or a variable is given that it sets.
    """
    if effort is None:
        return
    if effort not in EFFORTS:
        raise ContractError(f"reasoning_effort must be one of {', '.join(EFFORTS)}")
    for name in ("reasoning_effort", *SWITCHES):
        if name in template_kwargs:
            raise ContractError(
                f"reasoning_effort and chat_template_kwargs.{name} are both given: give one of them"
            )


def check_budget(
    num_tokens: int | None, *, is_chat: bool, is_structured: bool, must_call: bool
) -> None:
    """Check that a request with a budget of tokens for thoughts can have thoughts.

    Args:
        num_tokens: The budget; None if there is none.
        is_chat: Whether the request has messages.
        is_structured: Whether it demands a structured output.
        must_call: Whether its output must be calls.

    Raises:
        ContractError: it cannot.
    """
    if num_tokens is None:
        return
    if not is_chat:
        raise ContractError(
            "thinking_token_budget needs a chat, because only a chat's thoughts are told from its "
            "text: give messages instead of a prompt, or leave it out"
        )
    if is_structured or must_call:
        other = "a structured output" if is_structured else "a tool_choice that demands a call"
        raise ContractError(
            f"thinking_token_budget and {other} are both given, and such an output has no "
            "thoughts: leave one of them out"
        )
