# Generated from async_explanation.py by tests/structure/generate_sync.py: change that file.
"""Explaining waits: to a caller who waits, and in the error of one whose time is over."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError, ResultTimeout
from batchmill.producer.progress import JobProgress, ProgressSummary
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.job_progress import MAX_READINGS_AT_ONCE
from batchmill.producer.store.store import Store

from .progress import progress_of, progress_of_many
from .wait_limits import WaitLimit

#: An explanation must not make a wait much longer.
_EXPLANATION_LIMIT_S = 1.0
_NOT_TOLD = (RedisError, BatchmillError, OSError)


def explain_wait(store: Store, limit: WaitLimit) -> None:
    """Tell a caller who has waited for a while how far the job is."""
    if limit.is_report_due():
        limit.report(_progress(store, limit.job_id))


def explained(store: Store, error: ResultTimeout, job_ids: Sequence[str]) -> ResultTimeout:
    """Return the error of a caller whose time is over, with how far the jobs are."""
    progress: JobProgress | ProgressSummary | None
    if error.job_id is not None:
        progress = _progress(store, error.job_id)
        words = "" if progress is None else f" ({progress.describe()})"
    else:
        progress = _progress_of_many(store, job_ids[:MAX_READINGS_AT_ONCE])
        words = "" if progress is None else f" ({progress.describe_end()})"
    return ResultTimeout(f"{error}{words}", job_id=error.job_id, progress=progress)


def _progress(store: Store, job_id: str) -> JobProgress | None:
    with contextlib.suppress(*_NOT_TOLD), time_limit(_EXPLANATION_LIMIT_S):
        return progress_of(store, job_id)
    return None


def _progress_of_many(store: Store, job_ids: Sequence[str]) -> ProgressSummary | None:
    with contextlib.suppress(*_NOT_TOLD), time_limit(_EXPLANATION_LIMIT_S):
        return progress_of_many(store, job_ids)
    return None
