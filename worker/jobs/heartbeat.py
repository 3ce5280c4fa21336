"""The heartbeat: the key in Redis that says a worker is alive and what it serves."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.media import MEDIA_EXTRA
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.engine_host.messages import MediaCounts, OffloadCounts
from batchmill.worker.media.decoder import can_decode
from batchmill.worker.metrics.autoscaling import SPEED_STAT
from batchmill.worker.settings import WorkerSettings

from .active_jobs import ActiveJobs
from .recent_times import RecentTimes
from .session_connection import SessionConnection
from .throughput import BusySpeed, Throughput


class Heartbeat:
    """Writes one worker's heartbeat. A thread of the runtime calls `send` at an interval."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        link: EngineLink,
        jobs: ActiveJobs,
        throughput: Throughput,
        speed: BusySpeed,
        times: RecentTimes,
        *,
        name: str,
        session: str,
        connection: SessionConnection,
        is_draining: Callable[[], bool],
    ) -> None:
        """Bind to the parts that it reports on.

        Args:
            settings: of the worker.
            store: holds the heartbeats.
            link: to the engine.
            jobs: the active jobs.
            throughput: of the engine.
            speed: of the engine with full batches.
            times: of the jobs that ended lately.
            name: of the worker.
            session: this run of the worker.
            connection: of the session. It connects again if Redis does not see it.
            is_draining: whether the worker is shutting down.
        """
        self._settings = settings
        self._store = store
        self._link = link
        self._jobs = jobs
        self._throughput = throughput
        self._speed = speed
        self._times = times
        self._name = name
        self._session = session
        self._connection = connection
        self._is_draining = is_draining
        self._started_at_ms = int(time.time() * 1000)
        self._sent_at = time.monotonic()

    @property
    def interval_s(self) -> float:
        """Seconds between two heartbeats."""
        return self._settings.heartbeat_interval_s

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat that Redis took, or since the start."""
        return time.monotonic() - self._sent_at

    def send(self) -> None:
        """Write the heartbeat; it expires unless it is written again.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        ready = self._link.ready
        settings, config = self._settings, self._settings.engine_config
        taken = () if ready is None else tuple(ready.media)
        media = tuple(filter(can_decode, taken))
        num_connections = self._store.announce_worker(
            WorkerInfo(
                name=self._name,
                model=settings.served_name,
                identity="" if ready is None else ready.identity,
                queues=settings.queues,
                max_model_len=config.max_model_len if ready is None else ready.max_model_len,
                max_num_seqs=config.max_num_seqs,
                started_at_ms=self._started_at_ms,
                state=self._state(),
                versions=keys.SUPPORTED_VERSIONS,
                session=self._session,
                kinds=("generate",) if ready is None else tuple(ready.kinds),
                adapters=tuple(self._link.load.adapters),
                media=media,
                lacks=() if media == taken else (MEDIA_EXTRA,),
                stats=self.stats(),
            ),
            timeout_ms=int(settings.session_timeout_s * 1000),
        )
        self._sent_at = time.monotonic()
        if num_connections == 0:
            self._connection.reconnect()

    def remove(self) -> None:
        """Delete the heartbeat: the worker is gone.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        self._store.forget_worker(self._name, self._session)

    def stats(self) -> dict[str, int | float | str]:
        """Return gauges for people and dashboards."""
        load, ready, drafts = self._link.load, self._link.ready, self._link.drafts
        stats: dict[str, int | float | str] = {
            "engine_pid": self._link.pid or 0,
            "jobs": len(self._jobs),
            "running": load.num_running,
            "waiting": load.num_waiting,
            "free_blocks": load.num_free_blocks,
            "blocks": 0 if ready is None else ready.num_blocks,
            "tokens_per_s": round(self._throughput.rate(), 1),
        }
        if self._speed.tokens_per_s is not None:
            stats[SPEED_STAT] = round(self._speed.tokens_per_s, 1)
        if ready is not None and ready.dtype is not None:
            stats["dtype"] = ready.dtype
            stats["ranks"] = ready.num_ranks
        if drafts is not None:
            stats["draft_tokens"] = drafts.num_draft_tokens
            stats["accepted_tokens"] = drafts.num_accepted_tokens
            for source, (num_drafts, num_accepted) in drafts.by_source.items():
                stats[f"draft_tokens_{source}"] = num_drafts
                stats[f"accepted_tokens_{source}"] = num_accepted
        if self._link.media is not None:
            stats |= _media_stats(self._link.media)
        if self._link.offload is not None:
            stats |= _offload_stats(self._link.offload)
        return stats | self._times.stats()

    def _state(self) -> str:
        if self._is_draining():
            return "draining"
        return "starting" if self._link.ready is None else "ready"


def _media_stats(counts: MediaCounts) -> dict[str, int | float | str]:
    return {
        "media_encoded": counts.num_encoded,
        "media_found": counts.num_found,
        "tower_runs": counts.num_runs,
        "tower_s": round(counts.run_time_s, 1),
        "media_cache_bytes": counts.num_bytes,
    }


def _offload_stats(counts: OffloadCounts) -> dict[str, int | float | str]:
    return {
        "kv_host_stored_blocks": counts.num_stored,
        "kv_host_restored_blocks": counts.num_restored,
        "kv_host_bytes": counts.num_held * counts.block_bytes,
    }
