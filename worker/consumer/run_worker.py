"""Runs a worker in this process, as `batchmill worker` does."""

from __future__ import annotations

import warnings
from typing import Any

from celery import signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning

from batchmill.worker.settings import WorkerSettings

from .app_factory import create_app
from .own_shard import check_own_broker


class QuietWorker(Worker):
    """Celery's worker, without its claim to be ready: only `engine_ready` in the log means that."""

    def on_consumer_ready(self, consumer: Any) -> None:
        """Tell Celery's listeners that the consumer is connected."""
        signals.worker_ready.send(sender=consumer)


def run_worker(settings: WorkerSettings) -> int:
    """Run a worker in this process until it is asked to end, and return its exit status.

    Must be called from the main thread: it takes over SIGTERM, SIGINT and SIGQUIT.

    Raises:
        BrokerUnavailable: no broker is set and no embedded one runs.
        UnsupportedBroker: the server is too old, or runs in cluster mode.
        ShardMismatch: its broker is not the shard that the list means.
    """
    check_own_broker(settings)
    app = create_app(settings)
    # Celery warns root because pickles may run code; this worker reads JSON only.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = QuietWorker(
        app=app,
        hostname=settings.node_name,
        loglevel=settings.log_level,
        # Revokes are kept in job records, so workers need not inform each other.
        without_mingle=True,
        without_gossip=True,
        quiet=True,  # no banner on stdout: the log has all of its content
    )
    worker.start()
    return int(worker.exitcode or 0)
