"""`batchmill up`: broker, worker, deliverer, gateway and Flower on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_settings import with_setting_flags
from .errors import CommandError, ExitCode, usage_error
from .options import (
    FlowerPortOption,
    GatewayPortOption,
    JsonOption,
    NoFlowerOption,
    NoGatewayOption,
)

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
    gateway_port: GatewayPortOption = None,
    no_gateway: NoGatewayOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run broker, worker, deliverer, gateway and Flower on this machine until Ctrl-C.

    The broker is embedded unless BATCHMILL_BROKER_URL or --broker-url names another one.
    """
    from batchmill.worker.local.state_dir import default_state_dir
    from batchmill.worker.local.up import UpOptions, run_up

    _check_environment(broker_port)
    run_up(
        UpOptions(
            state_dir=state_dir or default_state_dir(),
            broker_port=broker_port,
            flower_port=flower_port,
            with_flower=not no_flower,
            gateway_port=gateway_port,
            with_gateway=not no_gateway,
            as_json=as_json,
        )
    )


def _check_environment(broker_port: int | None) -> None:
    """Refuse a broker, a secret or a port that no child could use.

    Raises:
        CommandError: the URL is invalid, or names several shards; the file of a secret cannot be
            read; or a port is given for a broker that would not be started.
        ChildMisconfigured: the port of the metrics leaves none for each child.
    """
    from batchmill.producer.broker_url import redact, redis_url
    from batchmill.producer.secrets_from_files import find_secret
    from batchmill.worker.local.metrics_ports import metrics_environment

    metrics_environment("worker")

    try:
        find_secret("BATCHMILL_WEBHOOK_SECRET")
        if find_secret("BATCHMILL_BROKER_URLS"):
            raise ValueError(
                "`batchmill up` runs with one broker, and BATCHMILL_BROKER_URLS names a list of "
                "shards: unset it, or start the programs of each shard by their own commands"
            )
        if url := find_secret("BATCHMILL_BROKER_URL"):
            redis_url(url)
    except ValueError as error:
        raise CommandError(str(error), code="invalid_settings", exit_code=ExitCode.CONFIG) from None
    if url and broker_port is not None:
        raise usage_error(
            f"--broker-port {broker_port} is of the embedded broker, which is not started because "
            f"BATCHMILL_BROKER_URL or --broker-url names {redact(url)}; leave out one of them"
        )
