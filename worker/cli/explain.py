"""`batchmill explain`: the explanation of a job's output, as a page or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption, TimeoutOption
from .waiting import wait_notes

_EPILOG = (
    "Examples:\n\n"
    '  batchmill submit "…" --explain confidence,attribution\n\n'
    "  batchmill explain gen_… -o report.html\n\n"
    "  batchmill explain gen_… --json"
)
_JobId = Annotated[str, typer.Argument(help="Id of a job that was submitted with `explain`.")]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="HTML page to write; it needs no network."),
]


def add_explain_command(app: typer.Typer) -> None:
    """Add `explain`."""
    app.command("explain", epilog=_EPILOG)(with_setting_flags("explain", explain))


def explain(
    job_id: _JobId,
    output: _Output = None,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the explanation of a job's output: confidence, alternatives, attribution, samples."""
    from batchmill.producer import Client

    if output is None and not as_json:
        raise usage_error("give -o FILE for a page, or --json")
    with (
        Client(resolve_broker(broker_url)) as client,
        wait_notes(job_id, as_json=as_json) as notes,
    ):
        result = client.result(job_id, timeout_s, on_wait=notes.on_wait)
    if result.explain is None:
        raise usage_error(f"{job_id} has no explanation: submit it with --explain confidence")
    if output is not None:
        from batchmill.worker.console.explain_report import explanation_page

        try:
            output.write_text(explanation_page(result), encoding="utf-8")
        except OSError as error:
            raise usage_error(f"--output {output} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"id": result.id, "explain": result.explain.model_dump(mode="json")})
    else:
        print(f"{output} has the explanation of {job_id}")
