"""Finds messages whose content a chat template leaves out of the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

#: Renders the variables of a template; raises whatever the template raises.
Render = Callable[[dict[str, Any]], str]


def first_lost_content(render: Render, given: dict[str, Any], prompt: str) -> int | None:
    """Return the index of the first message whose content is not in the prompt, or None.

    All contents are replaced by marks at once, because a chat may have thousands of messages. A
    template may treat marks differently (it may parse the content), so a message whose mark is
    missing counts as lost only if the prompt stays the same with another content of its length, or
    with another half of it.

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
        if any(_is_same(render, each, prompt) for each in _with_other_texts(given, index)):
            return index
    return None


def _is_same(render: Render, given: dict[str, Any], prompt: str) -> bool:
    try:
        return render(given) == prompt
    except Exception:  # as above: the template reads the content
        return False


def with_parts(given: dict[str, Any]) -> dict[str, Any]:
    """Return the variables with contents as lists of parts, for templates that know no others."""
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in given["conversation"]
    ]
    return {**given, "conversation": messages}


def shows_parts_as_data(given: dict[str, Any], prompt: str) -> bool:
    """Return whether a template that knows no parts has written a list of them into the prompt."""
    contents = [message["content"] for message in given["conversation"]]
    lists = [content for content in contents if isinstance(content, list)]
    written = (text for parts in lists for text in (str(parts), _json(parts)))
    return any(text in prompt for text in written)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # as templates' `tojson` writes it


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
            # Media keep their places, which a template may count.
            mark = [*_media_of(messages[index]), {"type": "text", "text": mark}]
        messages[index] = {**messages[index], "content": mark}
    # To continue a message, its content is looked for in the prompt.
    return {**given, "conversation": messages, "continue_final_message": False}


def _with_other_texts(given: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """Yield the variables with another content of one message, as long as its own.

    First all of the content is another one, then its first half, then the other half.
    """
    own: Any = given["conversation"][index]["content"]
    for change in (_other_text, _other_first_half, _other_last_half):
        if isinstance(own, str):
            content: Any = change(own)
        else:
            content = [
                {**part, "text": change(part["text"])} if "text" in part else part for part in own
            ]
        if content != own:
            messages = list(given["conversation"])
            messages[index] = {**messages[index], "content": content}
            yield {**given, "conversation": messages}


def _other_text(text: str) -> str:
    """Return a text of the same length and the same spaces without any character of the other."""
    return "".join(c if c.isspace() else "x" if c == "y" else "y" for c in text)


def _other_first_half(text: str) -> str:
    middle = len(text) // 2
    return _other_text(text[:middle]) + text[middle:]


def _other_last_half(text: str) -> str:
    middle = len(text) // 2
    return text[:middle] + _other_text(text[middle:])


def _mark(index: int) -> str:
    return f"qzx{index}xzq"


def _has_text(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, str):
        return bool(content.strip())
    return any(part.get("text", "").strip() for part in content or ())


def _media_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in message["content"] if "text" not in part]
