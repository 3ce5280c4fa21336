"""The strictness that all parts of a job share."""

from __future__ import annotations

from typing import Annotated, Final

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


Text = Annotated[str, AfterValidator(encoded)]
