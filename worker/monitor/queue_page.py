"""Flower's queue page with the jobs that wait, also of queues that no worker serves.

Flower measures the list of each queue that a worker has told it about. Ours hold only plain Celery
tasks that are not jobs yet: jobs wait in Redis under keys of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from flower.api.tasks import GetQueueLengths
from flower.views.broker import BrokerView
from redis.exceptions import RedisError

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

_log = logging.getLogger(__name__)
_PREFIX = "batchmill."
#: Name of the row with the jobs whose delay is not over.
DELAYED_ROW = "delayed jobs (counted above as well)"


class QueueLengthsOfJobs:
    """Stands in for Flower's broker: it is asked for the lengths of queues."""

    def __init__(self, broker: Any, application: Any) -> None:
        """Bind to Flower's own broker, for other queues, and to the Flower application."""
        self._broker = broker
        self._application = application
        self._store: JobStore = application.settings["batchmill_store"]

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return a row for each queue: ours, those of other apps, and one for delayed jobs."""
        consumers = self._count_consumers()
        served = {name for name in names if name.startswith(_PREFIX)}
        others = [name for name in names if name not in served and name in consumers]
        try:
            rows = await asyncio.to_thread(self._read, served, consumers)
        except RedisError as error:  # as with a Redis user from before this page
            _log.error("Unable to read the queues of jobs: %s", error)
            rows, others = [], [*served, *others]
        return [*rows, *(await self._broker.queues(others) if others else [])]

    def _read(self, served: set[str], consumers: dict[str, int]) -> list[dict[str, Any]]:
        depths = {depth.queue: depth for depth in self._store.queue_depths()}
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "messages": depths[name].queued if name in depths else 0,
                "messages_ready": depths[name].announcements if name in depths else 0,
                "consumers": consumers.get(name, 0),
            }
            for name in sorted({*served, *depths})
        ]
        num_delayed = int(self._store.client.zcard(keys.SCHEDULED))
        if num_delayed:
            rows.append({"name": DELAYED_ROW, "messages": num_delayed})
        return rows

    def _count_consumers(self) -> dict[str, int]:
        """Return how many live workers serve each queue."""
        workers = self._application.events.state.workers
        counts: dict[str, int] = {}
        for name, facts in self._application.workers.items():
            if name in workers and workers[name].alive:
                for queue in facts.get("active_queues") or ():
                    counts[queue["name"]] = counts.get(queue["name"], 0) + 1
        return counts


class QueuePage(BrokerView):
    """The page at `/broker`."""

    def get_broker(self) -> QueueLengthsOfJobs:
        """Return what is asked for the queues."""
        return QueueLengthsOfJobs(super().get_broker(), self.application)


class QueueLengths(GetQueueLengths):
    """The same as JSON, at `/api/queues/length`."""

    def get_broker(self) -> QueueLengthsOfJobs:
        """Return what is asked for the queues."""
        return QueueLengthsOfJobs(super().get_broker(), self.application)
