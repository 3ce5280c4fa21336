"""Checks of single sampling parameters; each error names the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from batchmill.engine.errors import RequestError

#: The largest logit bias, either way, as OpenAI and vLLM have it.
MAX_LOGIT_BIAS = 100


def invalid(name: str, value: object, remedy: str) -> RequestError:
    """The error for a value that cannot work."""
    return RequestError("invalid_request", f"{name} is {value!r}: {remedy}")


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuse what is no number from `least` to `most`.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid(name, value, "use a number")
    if not least <= value <= most:  # NaN as well
        raise invalid(name, value, f"use {least:g} to {most:g}")


def check_integer(
    name: str, value: object, least: int, remedy: str, *, most: int | None = None
) -> None:
    """Refuse what is no integer from `least` to `most`.

    Raises:
        RequestError: `invalid_request`.
    """
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        raise invalid(name, value, f"use an integer of at least {least}; {remedy}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is no truth value.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(value, bool):
        raise invalid(name, value, "use true or false")


def check_list(name: str, given: object) -> tuple[Any, ...]:
    """A list as it is kept; None is an empty one. Its entries stay out of errors.

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
    """A logit bias as pairs of token id and bias, by token id.

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
        raise RequestError(
            "invalid_request", "logit_bias is no mapping of token ids to numbers"
        ) from None
    if len(biases) != len(pairs):
        raise RequestError("invalid_request", "logit_bias names a token twice: name it once")
    for token_id, bias in biases.items():
        check_integer("a token id of logit_bias", token_id, 0, "use ids of the vocabulary")
        check_number(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return tuple(sorted(biases.items()))


def check_bad_words(given: object) -> tuple[str | tuple[int, ...], ...]:
    """Bad words, each a text or its token ids, as they are kept. Their texts stay out of errors.

    Raises:
        RequestError: `invalid_request`.
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise RequestError("invalid_request", "bad_words is no list: use a list of texts")
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
                f"bad_words[{index}] is neither a text nor a list of token ids, or is empty",
            )
    return tuple(words)
