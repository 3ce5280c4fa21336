"""Pictures and sounds inside the JSON of a decision's state, which a model would read as text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .errors import ContractError
from .media import MEDIA_KINDS, MEDIA_TYPES

#: Keys of a part that say where its content is; an inner object may have them too.
_SOURCES: Final = frozenset({*MEDIA_TYPES, "media", "url", "base64", "data"})
#: What a source begins with that holds the content itself, or names a stored medium.
_OWN_CONTENT: Final = ("data:", "med_")
_MAX_KEY_CHARS: Final = 40


def check_no_media(state: Any) -> None:
    """Refuse a state of JSON that has the part of a message with a picture or a sound.

    A part is recognized by a type that only chats have, such as `image_url`; by its own content; or
    by its place in a message with a role. Other objects of type `image` are data like any other,
    such as the blocks of a page with URLs.

    Args:
        state: JSON values, at any depth.

    Raises:
        ContractError: `unsupported_parameter`, naming the first such part.
    """
    found: deque[tuple[str, Any, bool]] = deque([("state", state, False)])
    while found:
        where, value, is_content = found.popleft()
        if isinstance(value, Mapping):
            kind = _media_type(value)
            if kind is not None and (is_content or _is_part(kind, value)):
                raise _refusal(where, kind)
            found += [
                (f"{where}.{str(key)[:_MAX_KEY_CHARS]}", each, key == "content" and "role" in value)
                for key, each in value.items()
                if isinstance(each, Mapping | list | tuple)
            ]
        elif isinstance(value, list | tuple):
            found += [
                (f"{where}[{index}]", each, is_content)
                for index, each in enumerate(value)
                if isinstance(each, Mapping | list | tuple)
            ]


def _media_type(value: Mapping[str, Any]) -> str | None:
    kind = value.get("type")
    return kind if isinstance(kind, str) and kind in MEDIA_TYPES else None


def _is_part(kind: str, value: Mapping[str, Any]) -> bool:
    sources = list(_sources(value))
    if kind not in MEDIA_KINDS:
        return bool(sources)
    return any(each[:5].lower().startswith(_OWN_CONTENT) for each in sources)


def _sources(value: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts that say where a part has its content."""
    for key in _SOURCES & value.keys():
        inner = value[key]
        if isinstance(inner, Mapping):
            yield from (each for each in map(inner.get, _SOURCES) if isinstance(each, str))
        elif isinstance(inner, str):
            yield inner


def _refusal(where: str, kind: str) -> ContractError:
    return ContractError(
        f"{where} is a part of type {kind}, and state is not a chat, so the model would read it as "
        "text: give messages with a role and a content and nothing else, or the parts of one "
        "message, of which each is of type text, image or audio",
        "unsupported_parameter",
    )
