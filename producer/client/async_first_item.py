"""Looking at the first item of an iterable before the others are read."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import TypeVar

Item = TypeVar("Item")


async def with_first(items: AsyncIterable[Item]) -> tuple[Item | None, AsyncIterator[Item]]:
    """Return the first item, None if there is none, and an iterator of all items."""
    rest = aiter(items)
    async for first in rest:
        return first, _chained(first, rest)
    return None, rest


async def _chained(first: Item, rest: AsyncIterator[Item]) -> AsyncIterator[Item]:
    yield first
    async for item in rest:
        yield item
