"""`batchmill healthcheck`: is the worker on this host ready? For containers and supervisors."""

from __future__ import annotations

import socket

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import open_store
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

_EPILOG = "Example, in a compose file:\n\n  healthcheck: {test: [CMD, batchmill, healthcheck]}"


def add_healthcheck_command(app: typer.Typer) -> None:
    """Add `healthcheck`."""
    app.command("healthcheck", epilog=_EPILOG)(healthcheck)


def healthcheck(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Exit with 0 if a worker on this host has loaded its model and sends heartbeats, else with 1.

    The heartbeats are read from Redis, so a process that lives but is stuck does not count as
    ready. The exit code is 3 if Redis does not reply within a few seconds.
    """
    host = socket.gethostname()
    with open_store(broker_url, impatient=True) as store:
        own = [info for info in store.list_workers() if info.name.rpartition("@")[2] == host]
    ready = sorted(info.name for info in own if info.state == "ready")
    if not ready:
        states = (
            ", ".join(f"{info.name} is {info.state}" for info in own) or "none sends a heartbeat"
        )
        raise CommandError(
            f"no worker on host {host} is ready: {states}",
            code="not_ready",
            exit_code=ExitCode.FAILED,
        )
    if as_json:
        print_json({"ready": ready})
    else:
        print("ready: " + ", ".join(ready))
