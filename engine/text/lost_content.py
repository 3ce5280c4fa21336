"""Finds messages whose content a chat template leaves out of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Renders the variables of a template; raises whatever the template raises.
Render = Callable[[dict[str, Any]], str]


def first_lost_content(render: Render, given: dict[str, Any], prompt: str) -> int | None:
    """Return the index of the first message whose content is not in the prompt, or None.

    All contents are replaced by marks at once, because a chat may have thousands of messages. A
    template may treat marks differently (it may parse the content), so a message whose mark is
    missing counts as lost only if the prompt stays the same with another content of its length.

    Args:
        render: Renders the template.
        given: Its variables.
        prompt: What it makes of them.
    """
    messages = given["conversation"]
    suspects = [index for index, message in enumerate(messages) if _has_text(message)]
    try:
        probe = render(_with_marks(given, suspects))
        suspects = [index for index in suspects if _mark(index) not in probe]
    except Exception:  # a template may raise anything
        pass
    for index in suspects:
        try:
            if render(_with_other_text(given, index)) == prompt:
                return index
        except Exception:  # as above: the template reads the content
            continue
    return None


def with_parts(given: dict[str, Any]) -> dict[str, Any]:
    """Return the variables with contents as lists of parts, for templates that know no others."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in given["conversation"]
    ]
    return {**given, "conversation": messages}


def with_empty_for_null(given: dict[str, Any]) -> dict[str, Any] | None:
    """Return the variables with empty contents instead of null; None if there are no such ones."""
    messages = given["conversation"]
    if all(message["content"] is not None for message in messages):
        return None
    filled = [
        message if message["content"] is not None else {**message, "content": ""}
        for message in messages
    ]
    return {**given, "conversation": filled}


def _with_marks(given: dict[str, Any], indexes: Sequence[int]) -> dict[str, Any]:
    """Return the variables with a mark as the content of each of these messages."""
    messages = list(given["conversation"])
    for index in indexes:
        mark: Any = _mark(index)
        if not isinstance(messages[index]["content"], str):
            mark = [{"type": "text", "text": mark}]
        messages[index] = {**messages[index], "content": mark}
    # To continue a message, its content is looked for in the prompt.
    return {**given, "conversation": messages, "continue_final_message": False}


def _with_other_text(given: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the variables with another content of one message, as long as its own."""
    messages = list(given["conversation"])
    content: Any = messages[index]["content"]
    if isinstance(content, str):
        content = _other_text(content)
    else:
        content = [{**part, "text": _other_text(part["text"])} for part in content]
    messages[index] = {**messages[index], "content": content}
    return {**given, "conversation": messages}


def _other_text(text: str) -> str:
    """Return a text of the same length and the same spaces without any character of the other."""
    return "".join(c if c.isspace() else "x" if c == "y" else "y" for c in text)


def _mark(index: int) -> str:
    return f"qzx{index}xzq"


def _has_text(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, str):
        return bool(content.strip())
    return any(part["text"].strip() for part in content or ())
