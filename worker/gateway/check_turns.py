"""Turns at checks that may take seconds, so that nobody who sends such content holds others up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from weakref import WeakValueDictionary

Value = TypeVar("Value")
#: Threads that check lines at a time: file contents and bodies are read on others.
_LINE_THREADS = 2
#: A group of lines ends after as many, or after this time: then another file has its turn.
_LINES_AT_ONCE = 200
_GROUP_S = 0.5


class CheckTurns:
    """Owns the turns of one event loop."""

    def __init__(self) -> None:
        """Begin without any."""
        self._tenants: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._line_places = asyncio.Semaphore(_LINE_THREADS)

    def of_tenant(self, tenant: str) -> asyncio.Lock:
        """Return the lock under which a tenant has one request checked at a time."""
        return self._tenants.setdefault(tenant, asyncio.Lock())

    async def next_lines(self, lines: Iterator[Value]) -> list[Value]:
        """Check the next lines on a thread when it is their turn; return [] at their end."""
        async with self._line_places:
            return await asyncio.to_thread(_next_group, lines)


def _next_group(lines: Iterator[Value], clock: Callable[[], float] = time.monotonic) -> list[Value]:
    group, ends_at = list[Value](), clock() + _GROUP_S
    for line in lines:
        group.append(line)
        if len(group) == _LINES_AT_ONCE or clock() >= ends_at:
            break
    return group
