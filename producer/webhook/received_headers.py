"""Headers of a received request, in the shapes in which web frameworks give them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from batchmill.producer.errors import SignatureError


class _WithItems(Protocol):
    """A mapping, or another object with pairs, such as `email.message.Message`."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return names and values."""


_Value = str | bytes | Sequence[str | bytes]
#: Names with values or lists of values, or pairs of name and value, as in ASGI.
ReceivedHeaders = _WithItems | Iterable[tuple[str | bytes, _Value]]


def read_header(headers: ReceivedHeaders, name: str) -> str:
    """Return the value of a header that must be there once; the case of its name does not matter.

    Raises:
        SignatureError: it is missing, empty, or there more than once with different values.
        TypeError: `headers` has another shape.
    """
    values = {value for found, value in _pairs(headers) if found.lower() == name}
    values.discard("")
    if not values:
        raise SignatureError(f"header {name} is missing")
    if len(values) > 1:
        raise SignatureError(f"header {name} has {len(values)} different values")
    return values.pop()


def _pairs(headers: ReceivedHeaders) -> Iterable[tuple[str, str]]:
    items = getattr(headers, "items", None)
    pairs = headers if items is None else items()
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TypeError(_SHAPES.format(type(pairs).__name__))
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str | bytes) or len(pair) != 2:
            raise TypeError(_SHAPES.format(type(headers).__name__))
        name, value = pair
        several = [value] if isinstance(value, str | bytes) else value
        if not isinstance(several, Sequence):
            raise TypeError(_SHAPES.format(type(headers).__name__))
        for each in several:
            yield _text(name), _text(each)


_SHAPES = (
    "headers must be a mapping of names to values, or a list of pairs of name and value, not {}"
)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    raise TypeError(f"a header's name and value must be str or bytes, not {type(value).__name__}")
