"""`batchmill top`: queues, models, workers and batches, live on a terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import missing, open_every_shard, open_job_stores, resolve_chosen_broker
from .options import BrokerUrlOption, JsonOption

_EPILOG = "Examples:\n\n  batchmill top\n\n  batchmill top --once\n\n  batchmill top --once --json"


def add_top_command(app: typer.Typer) -> None:
    """Add `top`."""
    app.command("top", epilog=_EPILOG)(top)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one snapshot and end, as in a pipe.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option("--interval-s", min=0.1, help="Seconds between updates.")
    ] = 1.0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show models, queues, workers and batches until q or Ctrl-C is pressed.

    Without a terminal, or with --json, it prints one snapshot. The backlog of a model is the time
    that its ready workers need for what waits, at most.
    """
    # Imported here: `batchmill --help` must not wait for the client library.
    from batchmill.producer import Client
    from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S

    from .top_screen import show_live
    from .top_view import TopReader

    with Client(resolve_chosen_broker(broker_url)) as client:
        reader = TopReader(client)
        if not (as_json or once) and sys.stdout.isatty():
            with open_job_stores(broker_url, part_limit_s=COMPARE_LIMIT_S) as stores:
                show_live(reader, stores, interval_s)
            return
        with open_every_shard(broker_url) as shards:
            view = reader.read(shards)
            if as_json:
                print_json(view.as_json() | missing(shards))
                return
            print(view.headline())
            for parts in view.tables():
                print_table(*parts)
