"""The prompt or chat of `batchmill submit`: from an argument, from options or from stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import usage_error
from .options import parse_json_option


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What the command line says about the prompt."""

    #: The text; None or `-` reads it from stdin.
    prompt: str | None
    #: A whole chat as JSON.
    messages: str | None
    system: str | None
    #: True sends the text as a user message, False as it is; None means that neither is asked for.
    chat: bool | None
    #: Kind, and file or URL, of each picture and sound before the text.
    media: tuple[tuple[str, str], ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return the job's `messages` or `prompt`. A text is a chat unless `chat` is False.

        Raises:
            CommandError: the options contradict each other, or there is no text.
        """
        if self.messages is not None:
            self._check_whole_chat()
            return {"messages": parse_json_option("--messages", self.messages)}
        if self.chat is False and self.system is not None:
            raise usage_error("--raw sends the prompt as it is: give --system without it")
        if self.chat is False and self.media:
            raise usage_error("--raw sends text alone: give --image and --audio without it")
        text = self._text()
        if self.chat is False:
            return {"prompt": text}
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, {"role": "user", "content": self._content(text)}]}

    def _content(self, text: str) -> str | list[Any]:
        """Return the text of the user's message, after its pictures and sounds."""
        parts = media_parts(self.media)
        return [*parts, {"type": "text", "text": text}] if parts else text

    def _check_whole_chat(self) -> None:
        if self.prompt is not None:
            raise usage_error("give either a prompt or --messages, not both")
        if self.system is not None:
            raise usage_error("give --system or --messages: the messages hold a system message too")
        if self.chat is False:
            raise usage_error("give either --raw or --messages: messages are a chat")
        if self.media:
            raise usage_error("give --image and --audio, or --messages: messages hold their own")

    def _text(self) -> str:
        if self.prompt is not None and self.prompt != "-":
            return self.prompt
        if self.prompt is None and sys.stdin.isatty():
            raise usage_error(
                "the prompt is missing: give it as an argument or on stdin, or a chat with "
                "--messages"
            )
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise usage_error(
                f"the prompt on stdin is not {error.encoding}: byte {error.start} is "
                f"0x{error.object[error.start]:02x}; convert it, for example with iconv"
            ) from None
        # Editors and echo end a text with a newline, which is not meant as part of the prompt.
        return text.removesuffix("\n")


def media_parts(media: Iterable[tuple[str, str]]) -> list[Any]:
    """Return the parts of a message for pictures and sounds: kind, and file or URL, of each.

    Raises:
        CommandError: one cannot be read.
    """
    from batchmill.producer.job.media_files import media_part

    parts: list[Any] = []
    for kind, source in media:
        try:
            parts.append(media_part(source, kind))
        except ValueError as error:
            raise usage_error(f"--{kind}: {error}") from None
    return parts
