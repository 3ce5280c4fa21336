"""`batchmill worker`: one worker in this process."""

from __future__ import annotations

import os

import typer

from .broker_connection import resolve_broker, resolve_one_broker
from .command_settings import with_setting_flags
from .options import JsonOption

_EPILOG = (
    "Examples:\n\n  batchmill worker --model demo\n\n"
    "  BATCHMILL_BROKER_URL=redis://queue:6379/0 batchmill worker --model Qwen/Qwen3-0.6B"
)


def add_worker_command(app: typer.Typer) -> None:
    """Add `worker`."""
    app.command("worker", epilog=_EPILOG)(with_setting_flags("worker", worker))


def worker(as_json: JsonOption = False) -> None:
    """Run one worker: it takes jobs for its model until SIGTERM, then releases unfinished jobs."""
    from batchmill.worker.consumer.run_worker import run_worker
    from batchmill.worker.settings import WorkerSettings

    if as_json:
        os.environ["BATCHMILL_LOG_FORMAT"] = "json"
    settings = WorkerSettings()
    # The embedded broker is found here, once, so that the worker keeps the same address when the
    # broker is restarted.
    url = resolve_broker(None)
    resolve_one_broker(url)  # refuses several shards of which none is chosen
    raise typer.Exit(
        run_worker(settings.model_copy(update={"broker_url": url, "broker_urls": None}))
    )
