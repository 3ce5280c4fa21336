"""Explaining waits: to a caller who waits, and in the error of one whose time is over."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError, ResultTimeout
from batchmill.producer.progress import JobProgress, ProgressSummary
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.job_progress import MAX_READINGS_AT_ONCE

from .async_progress import progress_of, progress_of_many
from .wait_limits import WaitLimit

#: An explanation must not make a wait much longer.
_EXPLANATION_LIMIT_S = 1.0
_NOT_TOLD = (RedisError, BatchmillError, OSError)


async def explain_wait(store: AsyncStore, limit: WaitLimit) -> None:
    """Tell a caller who has waited for a while how far the job is."""
    if limit.is_report_due():
        limit.report(await _progress(store, limit.job_id))


async def explained(
    store: AsyncStore, error: ResultTimeout, job_ids: Sequence[str]
) -> ResultTimeout:
    """Return the error of a caller whose time is over, with how far the jobs are."""
    progress: JobProgress | ProgressSummary | None
    if error.job_id is not None:
        progress = await _progress(store, error.job_id)
        words = "" if progress is None else f" ({progress.describe()})"
    else:
        progress = await _progress_of_many(store, job_ids[:MAX_READINGS_AT_ONCE])
        words = "" if progress is None else f" ({progress.describe_end()})"
    return ResultTimeout(f"{error}{words}", job_id=error.job_id, progress=progress)


async def _progress(store: AsyncStore, job_id: str) -> JobProgress | None:
    with contextlib.suppress(*_NOT_TOLD), time_limit(_EXPLANATION_LIMIT_S):
        return await progress_of(store, job_id)
    return None


async def _progress_of_many(store: AsyncStore, job_ids: Sequence[str]) -> ProgressSummary | None:
    with contextlib.suppress(*_NOT_TOLD), time_limit(_EXPLANATION_LIMIT_S):
        return await progress_of_many(store, job_ids)
    return None
