"""Handles of jobs that are submitted while they are read; a warning tells if none is read."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Generic, Self, TypeVar

Handle = TypeVar("Handle")
_UNREAD = (
    "iter_submit() was not read, so nothing was sent: loop over what it returns, or call "
    "submit_many()"
)


class Submissions(Iterator[Handle], Generic[Handle]):
    """Handles of `Client.iter_submit`, in order. Reading one submits the jobs up to it."""

    def __init__(self, handles: Generator[Handle, None, None]) -> None:
        self._handles = handles
        self._was_read = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Handle:
        self._was_read = True
        return next(self._handles)

    def close(self) -> None:
        """Submit no more."""
        self._was_read = True
        self._handles.close()

    def __del__(self) -> None:
        if not self._was_read:
            warnings.warn(_UNREAD, RuntimeWarning, stacklevel=2, source=self)


class AsyncSubmissions(AsyncIterator[Handle], Generic[Handle]):
    """Handles of `AsyncClient.iter_submit`, in order. Reading one submits the jobs up to it."""

    def __init__(self, handles: AsyncGenerator[Handle, None]) -> None:
        self._handles = handles
        self._was_read = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Handle:
        self._was_read = True
        return await anext(self._handles)

    async def aclose(self) -> None:
        """Submit no more."""
        self._was_read = True
        await self._handles.aclose()

    def __del__(self) -> None:
        if not self._was_read:
            warnings.warn(_UNREAD, RuntimeWarning, stacklevel=2, source=self)
