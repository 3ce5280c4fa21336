"""Checks of jobs that take long enough to hold up an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from .job_groups import as_job

#: Fields whose check compiles something.
_COMPILED: Final = ("response_format", "structured_outputs", "tools")


async def check_structures(job: object, fields: Mapping[str, Any]) -> None:
    """Check the structures of a job on a thread.

    Their verdicts are kept, so that the real check, in the event loop, finds them at once and
    reports what is wrong.
    """
    given = fields if job is None or isinstance(job, str) else job
    if isinstance(given, Mapping) and any(given.get(name) for name in _COMPILED):
        with contextlib.suppress(Exception):
            await asyncio.to_thread(as_job, dict(given), {})
