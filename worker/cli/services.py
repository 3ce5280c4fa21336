"""`batchmill worker`, `deliver`, `up`, `demo` and `webhook-secret`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json

from .broker import resolve_broker
from .errors import JsonOption
from .flags import with_flags

_WORKER_EPILOG = (
    "Examples:\n\n  batchmill worker --model demo\n\n"
    "  BATCHMILL_BROKER_URL=redis://queue:6379/0 batchmill worker --model Qwen/Qwen3-0.6B"
)
_DELIVER_EPILOG = (
    "Example:\n\n  BATCHMILL_WEBHOOK_SECRET=$(cat secret) batchmill deliver "
    "--broker-url redis://queue:6379/0"
)
_UP_EPILOG = (
    "Examples:\n\n  batchmill up\n\n  batchmill up --model Qwen/Qwen3-0.6B --device cuda\n\n"
    "  batchmill up --broker-port 6379 --no-flower"
)
_DEMO_EPILOG = "Examples:\n\n  batchmill demo\n\n  batchmill demo --json --time-limit-s 300"

_FlowerPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port for Flower. Default: 5555, or a free one."),
]
_NoFlower = Annotated[bool, typer.Option("--no-flower", help="Do not start Flower.")]
_SECRET_EPILOG = "Example:\n\n  batchmill webhook-secret > secret"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, command, epilog in (
        ("demo", demo, _DEMO_EPILOG),
        ("up", up, _UP_EPILOG),
        ("worker", worker, _WORKER_EPILOG),
        ("deliver", deliver, _DELIVER_EPILOG),
    ):
        app.command(name, epilog=epilog)(with_flags(name, command))
    app.command("webhook-secret", epilog=_SECRET_EPILOG)(webhook_secret)


def demo(
    time_limit_s: Annotated[
        float, typer.Option(min=1, help="Most seconds for the whole demo, model load included.")
    ] = 900.0,
    flower_port: _FlowerPort = None,
    no_flower: _NoFlower = False,
    as_json: JsonOption = False,
) -> None:
    """Run 33 real jobs through everything, on this machine, and check every webhook."""
    from batchmill.worker.demo.run import DemoOptions, run_demo

    passed = run_demo(
        DemoOptions(
            time_limit_s=time_limit_s,
            flower_port=flower_port,
            with_flower=not no_flower,
            as_json=as_json,
        )
    )
    raise typer.Exit(0 if passed else 1)


def up(
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Broker data, logs and secret. Default: ~/.local/state/batchmill."),
    ] = None,
    broker_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Let the embedded broker listen on 127.0.0.1 at this port, without a password, "
            "instead of a socket of this user.",
        ),
    ] = None,
    flower_port: _FlowerPort = None,
    no_flower: _NoFlower = False,
    as_json: JsonOption = False,
) -> None:
    """Run broker, worker, deliverer and Flower on this machine until Ctrl-C.

    The broker is embedded unless BATCHMILL_BROKER_URL or --broker-url names another one.
    """
    from batchmill.worker.local.state_dir import default_state_dir

    from .up import UpOptions, run_up

    run_up(
        UpOptions(
            state_dir=state_dir or default_state_dir(),
            broker_port=broker_port,
            flower_port=flower_port,
            with_flower=not no_flower,
            as_json=as_json,
        )
    )


def worker(as_json: JsonOption = False) -> None:
    """Run one worker: it takes jobs of its model until SIGTERM, then hands on what it has."""
    from batchmill.worker.consumer.run import run_worker
    from batchmill.worker.settings import WorkerSettings

    if as_json:
        os.environ["BATCHMILL_LOG_FORMAT"] = "json"
    settings = WorkerSettings()
    # The embedded broker is found here, once, so that its end and a new start do not move it.
    settings = settings.model_copy(update={"broker_url": resolve_broker(settings.broker_url)})
    raise typer.Exit(run_worker(settings))


def deliver(
    broker_url: Annotated[
        str | None, typer.Option("--broker-url", metavar="URL", help="As for every command.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Deliver webhooks until SIGTERM, then finish what is being sent. Any number may run."""
    from batchmill.worker.logs import configure_logging
    from batchmill.worker.webhooks.deliverer_process import run_deliverer
    from batchmill.worker.webhooks.settings import WebhookSettings

    configure_logging("INFO", "json" if as_json else "auto")
    run_deliverer(resolve_broker(broker_url), WebhookSettings())


def webhook_secret(as_json: JsonOption = False) -> None:
    """Print a new secret for BATCHMILL_WEBHOOK_SECRET. Give it to the receiver as well."""
    from batchmill.producer.webhook.signature import new_secret

    secret = new_secret()
    if as_json:
        print_json({"secret": secret})
    else:
        print(secret)
