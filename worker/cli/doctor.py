"""`batchmill doctor`: does this machine have everything that a worker needs?"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .doctor_findings import Level
from .errors import ExitCode
from .options import BrokerUrlOption, JsonOption

_EPILOG = "Examples:\n\n  batchmill doctor\n\n  batchmill doctor --model Qwen/Qwen3-0.6B --json"


def add_doctor_command(app: typer.Typer) -> None:
    """Add `doctor`."""
    app.command("doctor", epilog=_EPILOG)(doctor)


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Model to look for. Default: BATCHMILL_MODEL, else demo.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check Python, packages, broker, model, device and compiler; exit code 1 on a problem."""
    from .doctor_checks import examine_machine

    findings = examine_machine(broker_url, model or os.environ.get("BATCHMILL_MODEL") or "demo")
    has_problem = any(finding.level is Level.PROBLEM for finding in findings)
    if as_json:
        print_json({"ok": not has_problem, "findings": [asdict(item) for item in findings]})
    else:
        rows = ((item.level.value, item.check, item.detail, item.remedy) for item in findings)
        print_table("", ("", "check", "found", "remedy"), rows, has_sentences=True)
    raise typer.Exit(ExitCode.FAILED if has_problem else ExitCode.OK)
