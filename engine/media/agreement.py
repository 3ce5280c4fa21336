"""Checks that the media of a request suit its prompt and the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from batchmill.engine.contract.media import MEDIA_KINDS, Media
from batchmill.engine.errors import RequestError
from batchmill.engine.text.chat import Chat

_PLURALS = {"image": "images", "audio": "audio"}


def check_agreement(
    prompt: object, media: Sequence[Media], taken: Collection[str], model_name: str
) -> None:
    """Refuse media that do not suit the placeholders of a prompt, or that the model does not take.

    Args:
        prompt: A prompt; only a `Chat` has placeholders.
        media: What the request brings along, in the order of the placeholders.
        taken: Kinds of media that the model takes.
        model_name: For messages.

    Raises:
        RequestError: `invalid_request` if they do not agree with the placeholders,
            `unsupported_parameter` if the model takes none of their kind.
    """
    for index, each in enumerate(media):
        if not isinstance(each, Media):
            raise RequestError(
                "invalid_request",
                f"media[{index}] is a {type(each).__name__}: use Image or Audio, decoded",
            )
    wanted = prompt.media_kinds if isinstance(prompt, Chat) else []
    given = [each.kind for each in media]
    if not isinstance(prompt, Chat) and given:
        raise RequestError(
            "invalid_request",
            f"there are {len(given)} media and the prompt is not a chat, so nothing says where "
            "they belong: send messages with parts of type image or audio",
        )
    for kind in MEDIA_KINDS:
        if kind in wanted and kind not in taken:
            raise RequestError(
                "unsupported_parameter",
                f"messages have a part of type {kind}, and the model {model_name} takes no "
                f"{_PLURALS[kind]}: leave it out, or use a model that does",
            )
    if wanted != given:
        raise RequestError(
            "invalid_request",
            f"messages have placeholders of {_counted(wanted)} and media holds "
            f"{_counted(given)}: give one medium for each placeholder, in the same order",
        )


def _counted(kinds: Sequence[str]) -> str:
    if not kinds:
        return "nothing"
    rest = f" and {len(kinds) - 16} more" if len(kinds) > 16 else ""
    return ", ".join(kinds[:16]) + rest
