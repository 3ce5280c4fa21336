"""`Prompt`: what a row becomes, a text or the messages of a chat; and how a template is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from batchmill.producer.errors import BulkFileError
from batchmill.producer.job.line import LineKind
from batchmill.producer.job.media_files import media_part

from .jinja_template import JinjaTemplate
from .template import PromptTemplate

#: A line of its own that begins a message, in a template whose first line is such a one.
_ROLE_LINE = re.compile(r"^\[(system|user|assistant)\][ \t]*$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][\w-]{0,63}")


class Template(Protocol):
    """A text with places for the values of a row."""

    @property
    def columns(self) -> list[str]:
        """The columns that it uses."""

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the text for a row.

        Raises:
            ValueError: the row does not fit.
        """


class _Literal:
    """A text without places."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def columns(self) -> list[str]:
        return []

    def fill(self, row: Mapping[str, Any]) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class Prompt:
    """What each row becomes.

    Attributes:
        name: of the results' column; empty if there is only one prompt.
        messages: role and content of each message of a chat; one without a role is a bare prompt.
        text: the template, for the run's identity.
        system: the literal system message, for the same.
        is_jinja: whether the template is Jinja's, for the same.
        decision: the text is the state of this decision; None for a job of text.
    """

    name: str
    messages: tuple[tuple[str | None, Template], ...]
    text: str
    system: str | None = None
    is_jinja: bool = False
    decision: Mapping[str, Any] | None = None
    #: Whether the filled template is embedded, instead of being a prompt.
    embeds: bool = False
    #: Columns with a file or a URL of a picture or a sound, and its kind: they stand before the
    #: text of the last message of the user.
    media: Mapping[str, str] = field(default_factory=dict)
    #: What relative paths are relative to; None is the current folder.
    folder: Path | None = None

    @property
    def is_chat(self) -> bool:
        """Whether it has messages."""
        return self.messages[0][0] is not None

    @property
    def columns(self) -> list[str]:
        """The columns that it uses, each once."""
        used = (name for _, part in self.messages for name in part.columns)
        return list(dict.fromkeys((*used, *self.media)))

    def fields(self, row: Mapping[str, Any]) -> tuple[LineKind, dict[str, Any]]:
        """Return the shape of the result, and the fields of the job.

        A message that is empty is left out: its template may hold a condition.

        Raises:
            ValueError: the row does not fit.
        """
        role, template = self.messages[0]
        if self.decision is not None:
            return LineKind.DECIDE, {"decision": {**self.decision, "state": self._state(row)}}
        if self.embeds:
            return LineKind.EMBEDDINGS, {"embedding": {"input": template.fill(row)}}
        if role is None:
            return LineKind.TEXT, {"prompt": template.fill(row)}
        filled = [(role, part.fill(row)) for role, part in self.messages]
        messages: list[dict[str, Any]] = [
            {"role": role, "content": content} for role, content in filled if content.strip()
        ]
        if self.media:
            messages = self._with_media(messages, row)
        if not messages:
            raise ValueError("every message of the template is empty for this row")
        return LineKind.CHAT, {"messages": messages}

    def _with_media(
        self, messages: list[dict[str, Any]], row: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Put the pictures and sounds of a row before the text of the last message of the user."""
        parts: list[Any] = []
        for column, kind in self.media.items():
            source = row.get(column)
            if source is None or source == "":
                continue
            try:
                parts.append(media_part(str(source), kind, self.folder))
            except ValueError as error:
                raise ValueError(f"{error} (column {column})") from None
        last = messages[-1] if messages and messages[-1]["role"] == "user" else None
        if last is None:
            return [*messages, {"role": "user", "content": parts}] if parts else messages
        return [
            *messages[:-1],
            {"role": "user", "content": [*parts, {"type": "text", "text": last["content"]}]},
        ]

    def _state(self, row: Mapping[str, Any]) -> str | list[dict[str, Any]]:
        role, template = self.messages[0]
        if role is None:
            return template.fill(row)
        messages = [{"role": str(role), "content": part.fill(row)} for role, part in self.messages]
        return self._with_media(messages, row) if self.media else messages


def read_prompt(
    text: str,
    *,
    name: str = "",
    as_chat: bool = False,
    system: str | None = None,
    is_jinja: bool = False,
    embeds: bool = False,
) -> Prompt:
    """Return the prompt that a template describes.

    Args:
        text: of the template: one text, or messages below lines such as `[user]`.
        name: of the results' column, if there are several prompts.
        as_chat: one text becomes a user message.
        system: a message before it, taken literally.
        is_jinja: read it as Jinja; a template with `{%` is read so anyway.
        embeds: the filled template is a text to embed.

    Raises:
        BulkFileError: the name or the template is wrong.
    """
    if name and not _NAME.fullmatch(name):
        raise BulkFileError(
            f"the prompt's name {name!r} must begin with a letter and have letters, digits, _ and -"
        )
    is_jinja = is_jinja or "{%" in text
    parts = _role_parts(text)
    if embeds and (parts or as_chat):
        raise BulkFileError("a text to embed has no messages: leave out --chat and [user]")
    if parts and (as_chat or system is not None):
        raise BulkFileError(
            "the template has messages of its own ([user]): leave out --chat and --system"
        )
    if not parts:
        parts = [("user" if as_chat else None, text)]
    messages = [(role, _template(part, is_jinja=is_jinja)) for role, part in parts]
    if system is not None:
        messages.insert(0, ("system", _Literal(system)))
    return Prompt(name, tuple(messages), text, system, is_jinja, embeds=embeds)


def _template(text: str, *, is_jinja: bool) -> Template:
    if is_jinja:
        return JinjaTemplate(text)
    template = PromptTemplate(text)
    if not template.columns and re.search(r"{{\s*[A-Za-z_]", text):
        raise BulkFileError(
            "the template uses no column: {{ and }} are plain braces; write {column}, or add "
            "--jinja for a Jinja template"
        )
    return template


def _role_parts(text: str) -> list[tuple[str | None, str]]:
    """Return the messages of a template; empty if it is one text."""
    if not _ROLE_LINE.match(text.lstrip()):
        return []
    pieces = _ROLE_LINE.split(text.lstrip())[1:]
    return [
        (role, content.strip("\n")) for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
