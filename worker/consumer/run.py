"""Run a worker from a program: what `batchmill worker` does."""

from __future__ import annotations

from batchmill.worker.settings import WorkerSettings

from .app_factory import create_app


def run_worker(settings: WorkerSettings) -> int:
    """Run a worker in this process until it is told to end; returns its exit status.

    Must be called from the main thread: it takes over SIGTERM, SIGINT and SIGQUIT.

    Raises:
        BrokerUnavailable: no broker is named and no embedded one runs.
    """
    app = create_app(settings)
    worker = app.Worker(
        hostname=settings.node_name,
        loglevel=settings.log_level,
        # Revokes are kept in job records: workers need not tell each other about them.
        without_mingle=True,
        without_gossip=True,
        quiet=True,  # no banner on stdout: the log has all of it
    )
    worker.start()
    return int(worker.exitcode or 0)
