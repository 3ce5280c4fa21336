"""Rules of a chat: roles, function names, tool choice, and how the last message is continued."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args

from .errors import ContractError
from .grammar import schema_for_rule
from .structure_check import TOO_COMPLEX
from .structure_check_process import WALL_S
from .unsupported import RESERVED_TEMPLATE_KWARGS

#: `developer` is OpenAI's newer name for `system`.
Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: Final[tuple[str, ...]] = get_args(Role)
#: As in OpenAI.
FUNCTION_NAME: Final = r"^[a-zA-Z0-9_-]{1,64}$"
#: Text after the field's name in an error.
TOOL_CHOICE_FORMS: Final = (
    'must be auto, none, required or {"type": "function", "function": {"name": …}}'
)


def is_call_demanded(choice: object) -> bool:
    """Whether a tool choice demands that the output is calls and nothing else."""
    return choice == "required" or isinstance(choice, Mapping)


def check_tool_choice(choice: object, functions: Iterable[Mapping[str, Any]]) -> None:
    """Check that a tool choice suits the functions that are offered.

    Args:
        choice: `auto`, `required`, `none`, one function by name, or None.
        functions: `name`, and if given `parameters` and `strict`, of each.

    Raises:
        ContractError: it does not, or the parameters of a demanded call cannot be enforced.
    """
    by_name = {function["name"]: function for function in functions}
    if choice not in (None, "none") and not by_name:
        raise ContractError("tool_choice is given without tools: give tools, or leave it out")
    demanded: Iterable[str] = by_name if choice == "required" else ()
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str) or name not in by_name:
            raise ContractError("tool_choice must name one of the tools: use one of their names")
        demanded = (name,)
    elif choice not in (None, "auto", "none", "required"):
        raise ContractError(f"tool_choice {TOOL_CHOICE_FORMS}")
    started = time.monotonic()
    for name, function in by_name.items():
        if name in demanded:
            arguments_rule(function)
            if time.monotonic() - started > WALL_S:
                raise ContractError(
                    f"the parameters of the tools together take more than {WALL_S:g} s to compile, "
                    "the limit: offer fewer tools, or name one in tool_choice",
                    TOO_COMPLEX,
                )
        elif function.get("strict") and choice != "none":
            raise ContractError(
                "strict holds only if a call is certain: set tool_choice to required or to a "
                "function, or leave strict out",
                "unsupported_parameter",
            )


def arguments_rule(function: Mapping[str, Any]) -> str:
    """Return the schema of a function's arguments, for a Lark rule.

    Raises:
        ContractError: it cannot be enforced.
    """
    parameters = function.get("parameters") or {"additionalProperties": False}
    field = f"the parameters of {function['name']}"
    return schema_for_rule(field, {**parameters, "type": "object"})


def check_continuation(*, ends_with_assistant_text: bool, add_generation_prompt: bool) -> None:
    """Check that a chat's last message can be continued.

    Args:
        ends_with_assistant_text: Whether that message is text of the assistant.
        add_generation_prompt: Whether a new message is asked for as well.

    Raises:
        ContractError: it cannot be.
    """
    if not ends_with_assistant_text:
        raise ContractError(
            "continue_final_message continues text of the assistant, and the last message has "
            "none: add it, or leave continue_final_message out"
        )
    if add_generation_prompt:
        raise ContractError(
            "add_generation_prompt begins a new message and continue_final_message continues the "
            "last: give one of them"
        )


def template_kwarg_problem(name: str, value: object) -> str | None:
    """Return why a template's variable must not have a name or a value; None if it may.

    Args:
        name: A key of `chat_template_kwargs`.
        value: Its value.

    Returns:
        Text after the field's name in an error.
    """
    shown = repr(name[:40])
    if name in RESERVED_TEMPLATE_KWARGS or not name.isidentifier():
        return f"must not have a key {shown}: leave it out"
    if not isinstance(value, str | int | float | bool | None):
        return f"must have text, a number, true, false or null under {shown}"
    return None
