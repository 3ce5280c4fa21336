"""`batchmill demo`: the whole system on this machine, for a first look."""

from __future__ import annotations

from typing import Annotated

import typer

from .command_settings import with_setting_flags
from .errors import ExitCode
from .options import (
    FlowerPortOption,
    GatewayPortOption,
    JsonOption,
    NoFlowerOption,
    NoGatewayOption,
)

_EPILOG = "Examples:\n\n  batchmill demo\n\n  batchmill demo --json --time-limit-s 300"


def add_demo_command(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command("demo", epilog=_EPILOG)(with_setting_flags("demo", demo))


def demo(
    time_limit_s: Annotated[
        float,
        typer.Option(min=1, help="Maximum seconds for the whole demo, loading the model included."),
    ] = 900.0,
    flower_port: FlowerPortOption = None,
    no_flower: NoFlowerOption = False,
    gateway_port: GatewayPortOption = None,
    no_gateway: NoGatewayOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run 33 real jobs on this machine, from submission to webhook, and check every webhook."""
    from batchmill.worker.demo.run import DemoOptions, run_demo

    passed = run_demo(
        DemoOptions(
            time_limit_s=time_limit_s,
            flower_port=flower_port,
            with_flower=not no_flower,
            gateway_port=gateway_port,
            with_gateway=not no_gateway,
            as_json=as_json,
        )
    )
    raise typer.Exit(ExitCode.OK if passed else ExitCode.FAILED)
