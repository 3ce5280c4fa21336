"""`batchmill up`: broker, worker, deliverer and Flower on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_settings import with_setting_flags
from .options import FlowerPortOption, JsonOption, NoFlowerOption

_EPILOG = (
    "Examples:\n\n  batchmill up\n\n  batchmill up --model Qwen/Qwen3-0.6B --device cuda\n\n"
    "  batchmill up --broker-port 6379 --no-flower"
)


def add_up_command(app: typer.Typer) -> None:
    """Add `up`."""
    app.command("up", epilog=_EPILOG)(with_setting_flags("up", up))


def up(
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the broker's data, the logs and the secret. Default: "
            "~/.local/state/batchmill."
        ),
    ] = None,
    broker_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Let the embedded broker listen on 127.0.0.1 at this port, without a password, "
            "instead of on a socket that only this user can open.",
        ),
    ] = None,
    flower_port: FlowerPortOption = None,
    no_flower: NoFlowerOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run broker, worker, deliverer and Flower on this machine until Ctrl-C.

    The broker is embedded unless BATCHMILL_BROKER_URL or --broker-url names another one.
    """
    from batchmill.worker.local.state_dir import default_state_dir
    from batchmill.worker.local.up import UpOptions, run_up

    run_up(
        UpOptions(
            state_dir=state_dir or default_state_dir(),
            broker_port=broker_port,
            flower_port=flower_port,
            with_flower=not no_flower,
            as_json=as_json,
        )
    )
