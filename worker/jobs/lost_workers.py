"""Puts back what programs had taken whose process is gone, without waiting for their leases."""

from __future__ import annotations

import structlog

from batchmill.producer.store.job_store import JobStore

from .session_connection import SessionConnection

_log = structlog.stdlib.get_logger("batchmill.lost_workers")
#: Jobs per call. Redis serves no other client during the call.
_LIMIT = 500


def put_back_jobs_of_lost_workers(
    store: JobStore, session: str, connection: SessionConnection
) -> None:
    """Put back the jobs of workers that are gone, and what else they or deliverers had taken.

    Any number of programs may call it at once.

    Args:
        store: holds the records.
        session: this run of the caller.
        connection: of the session; one that was made lately makes no other program count as lost.

    Raises:
        redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
    """
    num_jobs = _LIMIT
    while num_jobs >= _LIMIT:
        lost = store.end_lost_sessions(
            session, connected_ms=int(connection.connected_s * 1000), limit=_LIMIT
        )
        num_jobs = lost.num_jobs
        if lost.num_jobs or lost.num_reannounced or lost.num_released:
            _log.warning(
                "jobs_of_lost_workers",
                sessions=list(lost.sessions),
                num_jobs=lost.num_jobs,
                num_announced_again=lost.num_reannounced,
                num_handed_out_again=lost.num_released,
            )
