# Generated from async_first_item.py by tests/structure/generate_sync.py: change that file.
"""Looking at the first item of an iterable before the others are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def with_first(items: Iterable[Item]) -> tuple[Item | None, Iterator[Item]]:
    """Return the first item, None if there is none, and an iterator of all items."""
    rest = iter(items)
    for first in rest:
        return first, _chained(first, rest)
    return None, rest


def _chained(first: Item, rest: Iterator[Item]) -> Iterator[Item]:
    yield first
    yield from rest
