"""Control tokens that a message's text spells out, kept apart from those of the template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from batchmill.engine.errors import RequestError

#: Characters for private use, of which a text has hardly ever one.
_MARKS: Final = tuple(chr(code) for code in range(0xE000, 0xE040))


class RenderedChat(NamedTuple):
    """The text that a template makes of a chat."""

    text: str
    #: Stands inside each control token that a content spells out; None if there is none.
    mark: str | None = None

    @property
    def parts(self) -> list[str]:
        """The parts that are tokenized each by itself."""
        return [self.text] if self.mark is None else self.text.split(self.mark)


def with_marks(
    messages: Sequence[Mapping[str, Any]], control_texts: Iterable[str]
) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """Return messages with a mark inside each control token that a content spells out.

    A prompt that is split at the marks, and whose parts are tokenized each by itself, has these
    tokens as plain text: a text cannot end its own message.

    Args:
        messages: Messages whose contents are texts, or parts of type text, image or audio.
        control_texts: The texts of the model's control tokens.

    Returns:
        The messages, and the mark; None if no content has such a text.

    Raises:
        RequestError: `invalid_request`: no mark is left that the contents do not have.
    """
    texts = sorted((text for text in control_texts if len(text) > 1), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
    contents = [text for message in messages for text in _texts(message.get("content"))]
    if pattern is None or not any(map(pattern.search, contents)):
        return messages, None
    free = (mark for mark in _MARKS if not any(mark in content for content in contents))
    mark = next(free, None)
    if mark is None:
        raise RequestError(
            "invalid_request",
            "a message spells out a control token and has every character from U+E000 to U+E03F: "
            "leave out one of them",
        )

    def split(content: str) -> str:
        return pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", content)

    def split_all(content: Any) -> Any:
        if content is None or isinstance(content, str):
            return content and split(content)
        return [
            {**part, "text": split(part["text"])} if part["type"] == "text" else part
            for part in content
        ]

    return [
        {**message, "content": split_all(message["content"])} if "content" in message else message
        for message in messages
    ], mark


def _texts(content: Any) -> list[str]:
    """Return the texts of a content."""
    if content is None or isinstance(content, str):
        return [content or ""]
    return [part["text"] for part in content if part["type"] == "text"]
