"""An asyncio client behind the interface of the synchronous one: a test holds for both kinds."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from batchmill.producer import AsyncClient, AsyncJob, AsyncSubmissions


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the loop."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Blocking:
    """Forwards each method to an `AsyncClient` or `AsyncJob`, and waits for the result."""

    def __init__(self, owner: AsyncClient | AsyncJob, loop: LoopThread) -> None:
        self._owner = owner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._owner, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._wait(value(*args, **kwargs))

        return call

    def _wait(self, result: Any) -> Any:
        if inspect.isasyncgen(result) or isinstance(result, AsyncSubmissions):
            return self._iterate(result)
        if inspect.iscoroutine(result):
            result = self._loop.run(result)
        if isinstance(result, list):
            return [self._wait(item) for item in result]
        return Blocking(result, self._loop) if isinstance(result, AsyncJob) else result

    def _iterate(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()

        async def next_item() -> Any:
            return await anext(items, end)

        while (item := self._loop.run(next_item())) is not end:
            yield self._wait(item)
