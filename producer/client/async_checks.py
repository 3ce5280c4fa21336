"""Checks of jobs that take long enough to hold up an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from .job_groups import as_job

#: Fields whose check compiles something.
_COMPILED: Final = ("response_format", "structured_outputs", "tools")
#: As many as there are processes that compile.
_NUM_THREADS: Final = 2


async def check_structures(job: object, fields: Mapping[str, Any]) -> None:
    """Check the structures of a job on a thread.

    Their verdicts are kept, so that the real check, in the event loop, finds them at once and
    reports what is wrong.
    """
    given = fields if job is None or isinstance(job, str) else job
    if isinstance(given, Mapping) and any(given.get(name) for name in _COMPILED):
        loop = asyncio.get_running_loop()
        with contextlib.suppress(Exception):
            await loop.run_in_executor(_threads, partial(as_job, dict(given), {}))


def _new_threads() -> ThreadPoolExecutor:
    """Return threads of their own: a loop looks names up in its threads, which must stay free."""
    return ThreadPoolExecutor(_NUM_THREADS, "structure-check")


_threads = _new_threads()


def _after_fork_in_child() -> None:
    global _threads
    _threads = _new_threads()


os.register_at_fork(after_in_child=_after_fork_in_child)
