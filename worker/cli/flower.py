"""`batchmill flower`: Flower, with the queues of jobs."""

from __future__ import annotations

import os

import typer

from .broker_connection import resolve_broker, resolve_one_broker
from .options import BrokerUrlOption

_EPILOG = (
    "Example:\n\n  FLOWER_BASIC_AUTH=operator:PASSWORD batchmill flower "
    "--broker-url redis://queue:6379/0 --address=127.0.0.1 --port=5555"
)


def add_flower_command(app: typer.Typer) -> None:
    """Add `flower`."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("flower", epilog=_EPILOG, context_settings=settings)(flower)


def flower(context: typer.Context, broker_url: BrokerUrlOption = None) -> None:
    """Run Flower until Ctrl-C: jobs, workers, and the jobs that wait in each queue.

    Further options are Flower's own, also as FLOWER_* variables. Without FLOWER_READ_ONLY it can
    end jobs and workers, so give it a password. With several shards, each has its own Flower, at
    consecutive ports; BATCHMILL_SHARD chooses one.
    """
    from batchmill.producer.shard_list import read_shard_list

    url = resolve_broker(broker_url)
    shards = read_shard_list(url)
    if shards.only is None and not os.environ.get("BATCHMILL_SHARD"):
        from batchmill.worker.monitor.one_per_shard import run_flower_per_shard

        run_flower_per_shard(url, shards, context.args)
        return
    from batchmill.worker.monitor.server import run_flower

    run_flower(resolve_one_broker(broker_url), context.args)
