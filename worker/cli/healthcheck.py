"""`batchmill healthcheck`: the probes of a worker or deliverer, for containers and supervisors."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json

from .errors import CommandError, ExitCode, usage_error
from .options import JsonOption

if TYPE_CHECKING:
    from batchmill.worker.health.report import HealthReport

_EPILOG = (
    "Examples:\n\n  batchmill healthcheck worker --live\n\n"
    "  batchmill healthcheck deliverer --ready"
)


class Service(StrEnum):
    """A program with probes."""

    WORKER = "worker"
    DELIVERER = "deliverer"


ServiceArgument = Annotated[Service, typer.Argument(help="The program to check.")]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Check whether the process works; Redis does not matter.")
]
ReadyOption = Annotated[
    bool, typer.Option("--ready", help="Check whether it takes work now. The default.")
]


def add_healthcheck_command(app: typer.Typer) -> None:
    """Add `healthcheck`."""
    app.command("healthcheck", epilog=_EPILOG)(healthcheck)


def healthcheck(
    service: ServiceArgument = Service.WORKER,
    live: LiveOption = False,
    ready: ReadyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check every worker, or deliverer, that this user runs on this machine.

    Exit code 0: all are live, or ready. 1: one is not, or none runs. 3: not ready, but only because
    Redis does not reply.

    *Live* means that the process moves, and its engine's loop too; it stays true while Redis is
    away, full, frozen or failing over, and while a model is loading. Restart a process that is not
    live. *Ready* means that the model is loaded, the engine moves, Redis replies, and the process
    is not shutting down.

    The probe reads a file that the process writes every second, and never connects to Redis.
    """
    # Imported here: `batchmill --help` must not wait for the client library.
    from batchmill.worker.health.report import health_folder, read_reports

    if live and ready:
        raise usage_error("give either --live or --ready, not both")
    reports = read_reports(service)
    if not reports:
        raise _failure(
            f"no {service} of this user runs on this machine, or it cannot write to "
            f"{health_folder()}",
            live=live,
        )
    for report in reports:
        _check(report, live=live)
    names = [report.name for report in reports]
    if as_json:
        print_json({"live" if live else "ready": names})
    else:
        print(("live: " if live else "ready: ") + ", ".join(names))


def _check(report: HealthReport, *, live: bool) -> None:
    """Raise the first problem of a process.

    Raises:
        CommandError: it is not live, or not ready.
    """
    if report.live_problem is not None:
        raise _failure(f"{report.name} is not live: {report.live_problem}", live=live)
    if live:
        return
    if report.ready_problem is not None:
        raise _failure(f"{report.name} is not ready: {report.ready_problem}", live=False)
    if report.broker_problem is not None:
        raise CommandError(
            f"{report.name} is not ready: {report.broker_problem}",
            code="broker_unavailable",
            exit_code=ExitCode.BROKER,
        )


def _failure(message: str, *, live: bool) -> CommandError:
    code = "not_live" if live else "not_ready"
    return CommandError(message, code=code, exit_code=ExitCode.FAILED)
