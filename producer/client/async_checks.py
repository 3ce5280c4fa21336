"""Checks of jobs that take long enough to hold up an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

Value = TypeVar("Value")

#: Fields whose check compiles something.
_COMPILED: Final = ("response_format", "structured_outputs", "tools")
#: As many as there are processes that compile.
_NUM_THREADS: Final = 2


async def off_loop(function: Callable[..., Value], *args: Any) -> Value:
    """Return what a function makes of a job; on a thread if that may take long.

    Args:
        function: checks the job.
        *args: the job, or its fields, and whatever else the function takes.
    """
    found = [arg for arg in args if isinstance(arg, Mapping)]
    if any(fields.get(name) for fields in found for name in _COMPILED):
        run = partial(contextvars.copy_context().run, function, *args)
        return await asyncio.get_running_loop().run_in_executor(_threads, run)
    if any(map(_may_have_media, found)):  # decoding and hashing 20 MiB takes a tenth of a second
        return await asyncio.to_thread(function, *args)
    return function(*args)


def _may_have_media(fields: Mapping[str, Any]) -> bool:
    messages = fields.get("messages")
    return isinstance(messages, list) and any(
        isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for message in messages
    )


def _new_threads() -> ThreadPoolExecutor:
    """Return threads of their own: a loop looks names up in its threads, which must stay free."""
    return ThreadPoolExecutor(_NUM_THREADS, "structure-check")


_threads = _new_threads()


def _after_fork_in_child() -> None:
    global _threads
    _threads = _new_threads()


os.register_at_fork(after_in_child=_after_fork_in_child)
