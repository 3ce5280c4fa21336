"""Checks of single sampling parameters; each error names the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from batchmill.engine.contract.limits import MAX_LOGIT_BIAS
from batchmill.engine.errors import RequestError


def invalid_value_error(name: str, value: object, remedy: str) -> RequestError:
    """Return the error for a value that cannot work."""
    return RequestError("invalid_request", f"{name} is {value!r}: {remedy}")


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf
) -> None:
    """Check that a value is a number from `least` to `most`.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid_value_error(name, value, "use a number")
    if not least <= value <= most:  # NaN as well
        raise invalid_value_error(name, value, f"use {least:g} to {most:g}")


def check_integer(
    name: str, value: object, least: int, remedy: str = "", *, most: int | None = None
) -> None:
    """Check that a value is an integer from `least` to `most`.

    Raises:
        RequestError: `invalid_request`.
    """
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        hint = f"; {remedy}" if remedy else ""
        raise invalid_value_error(name, value, f"use an integer {bounds}{hint}")


def check_flag(name: str, value: object) -> None:
    """Check that a value is true or false.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(value, bool):
        raise invalid_value_error(name, value, "use true or false")


def check_list(name: str, given: object) -> tuple[Any, ...]:
    """Return a list as a tuple; None is an empty one. Errors do not show its entries.

    Raises:
        RequestError: `invalid_request`.
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes) or not isinstance(given, Sequence | Set):
        raise RequestError(
            "invalid_request", f"{name} is a {type(given).__name__}: use a list, even for one"
        )
    return tuple(given)


def check_logit_bias(given: object) -> tuple[tuple[int, float], ...]:
    """Return a logit bias as pairs of token id and bias, sorted by token id.

    Raises:
        RequestError: `invalid_request`.
    """
    if given is None:
        return ()
    try:
        pairs = dict(given)  # type: ignore[call-overload]
        # The keys of a JSON object are strings.
        biases = {int(token_id): bias for token_id, bias in pairs.items()}
    except (TypeError, ValueError):
        raise RequestError("invalid_request", "logit_bias must map token ids to numbers") from None
    if len(biases) != len(pairs):
        raise RequestError("invalid_request", "logit_bias names a token twice: name it once")
    for token_id, bias in biases.items():
        check_integer("a token id of logit_bias", token_id, 0, "use ids of the vocabulary")
        check_number(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return tuple(sorted(biases.items()))


def check_bad_words(given: object) -> tuple[str | tuple[int, ...], ...]:
    """Return bad words as a tuple, each a text or its token ids. Errors do not show the texts.

    Raises:
        RequestError: `invalid_request`.
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise RequestError("invalid_request", "bad_words must be a list of texts")
    words: list[str | tuple[int, ...]] = []
    for index, word in enumerate(given):
        if isinstance(word, str) and word.strip():
            words.append(word)
        elif isinstance(word, list | tuple) and word:
            for token_id in word:
                check_integer(f"bad_words[{index}]", token_id, 0, "use ids of the vocabulary")
            words.append(tuple(word))
        else:
            raise RequestError(
                "invalid_request",
                f"bad_words[{index}] must be a non-empty text or list of token ids",
            )
    return tuple(words)


def check_negative_prompt(given: object) -> str | tuple[int, ...] | None:
    """Return a negative prompt, token ids as a tuple. Errors do not show it.

    Raises:
        RequestError: `invalid_request`.
    """
    if given is None or (isinstance(given, str) and given):
        return given
    if isinstance(given, list | tuple) and given:
        for token_id in given:
            check_integer("negative_prompt", token_id, 0, "use ids of the vocabulary")
        return tuple(given)
    raise RequestError(
        "invalid_request", "negative_prompt must be a non-empty text or list of token ids"
    )
