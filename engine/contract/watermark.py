"""The form of a watermark's name and secret, and the controls that it agrees with."""

from __future__ import annotations

import re
from typing import Final

from .errors import ContractError

#: Names of keys; a job names the key that marks its text.
WATERMARK_NAME_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Of a secret; `batchmill watermark new-key` makes longer ones.
MIN_SECRET_CHARS: Final = 16
MAX_SECRET_CHARS: Final = 1024


def is_watermark_name(name: object) -> bool:
    """Return whether a value can be the name of a key."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_watermark(name: str, temperature: float | None) -> None:
    """Check the key that a request names, with its temperature.

    Args:
        name: The key's name.
        temperature: None if the request leaves it to the model.

    Raises:
        ContractError: the name has another form, or nothing is sampled.
    """
    if not is_watermark_name(name):
        raise ContractError("watermark must be the name of a key: 1 to 64 letters, digits, _ and -")
    if temperature == 0:
        raise ContractError(
            "watermark is given and temperature is 0: a watermark lies in the noise of sampling, "
            "and greedy output has none, so use a temperature above 0 or leave watermark out"
        )


def problem_of_secret(name: object, secret: object) -> str | None:
    """Return what is wrong with a key, without its secret; None if nothing is."""
    if not is_watermark_name(name):
        return f"the name {str(name)[:64]!r} must have 1 to 64 letters, digits, _ and -"
    if not isinstance(secret, str):
        return f"the secret of {name!r} must be text"
    if not MIN_SECRET_CHARS <= len(secret) <= MAX_SECRET_CHARS:
        return (
            f"the secret of {name!r} has {len(secret)} characters, but must have "
            f"{MIN_SECRET_CHARS} to {MAX_SECRET_CHARS}: batchmill watermark new-key makes one"
        )
    return None
