"""The strictness that all parts of a job share."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict

STRICT: Final = ConfigDict(
    strict=True,
    extra="forbid",
    frozen=True,
    allow_inf_nan=False,
    # A prompt must not end up in a log because something else in the job was wrong.
    hide_input_in_errors=True,
)


def encoded(text: str) -> str:
    """Refuse what UTF-8 cannot hold: pydantic lets lone surrogates through.

    Raises:
        ValueError: it holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which UTF-8 cannot encode") from None
    return text


def check_depth(value: Any, limit: int) -> None:
    """Refuse JSON that is nested so deep that a reader of the job's document may give up on it.

    Raises:
        ValueError: an object or list lies in more than `limit` others.
    """
    layer, depth = [value], 0
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        if depth > limit:
            raise ValueError(f"is nested more than {limit} deep, the limit; make it flatter")
        layer = [
            inner for item in layer for inner in (item.values() if isinstance(item, dict) else item)
        ]


Text = Annotated[str, AfterValidator(encoded)]
