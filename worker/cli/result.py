"""`batchmill result` and `stream`: the output of one job, at its end or while it is generated."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import open_store_of, resolve_broker
from .options import BrokerUrlOption, JsonOption, TimeoutOption
from .pauses import tell_if_paused
from .waiting import wait_notes

if TYPE_CHECKING:
    from batchmill.producer import JobResult, StreamPiece

_RESULT_EPILOG = "Examples:\n\n  batchmill result gen_…\n\n  batchmill result gen_… --timeout-s 60"
_STREAM_EPILOG = "Examples:\n\n  batchmill stream gen_…\n\n  batchmill stream gen_… --json"
_JobId = Annotated[str, typer.Argument(help="Id of the job.")]


def add_result_commands(app: typer.Typer) -> None:
    """Add `result` and `stream`."""
    app.command("result", epilog=_RESULT_EPILOG)(result)
    app.command("stream", epilog=_STREAM_EPILOG)(stream)


def result(
    job_id: _JobId,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for a job to end and print its text."""
    from batchmill.producer import Client

    with open_store_of(broker_url, job_id) as store:
        tell_if_paused(store, job_id)
    with (
        Client(resolve_broker(broker_url)) as client,
        wait_notes(job_id, as_json=as_json) as notes,
    ):
        found = client.result(job_id, timeout_s, on_wait=notes.on_wait)
    print_result(found, as_json=as_json)


def stream(
    job_id: _JobId,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's text while it is generated; with --json, one line per piece."""
    from batchmill.producer import Client

    with (
        Client(resolve_broker(broker_url)) as client,
        wait_notes(job_id, as_json=as_json) as notes,
    ):
        pieces = client.stream(job_id, timeout_s=timeout_s, on_wait=notes.on_wait)
        print_stream(pieces, as_json=as_json)


def print_stream(pieces: Iterable[StreamPiece], *, as_json: bool) -> None:
    """Print pieces of output as they come; as JSON, one line per piece."""
    try:
        for piece in pieces:
            if as_json:
                print_json({"text": piece.text, "token_ids": piece.token_ids})
            else:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    finally:
        if not as_json:  # an error message begins on a line of its own
            print()


def print_result(result: JobResult, *, as_json: bool) -> None:
    """Print the texts and the tool calls of a result, or all of it as JSON.

    Of several samples only the selected one is printed, if the job selects one.
    """
    if as_json:
        print_json(result.model_dump(mode="json") | {"token_ids": result.token_ids})
        return
    selected = result.selected if result.selection is not None else None
    for completion in result.completions if selected is None else [selected]:
        if completion.text or not completion.tool_calls:
            print(completion.text)
        for call in completion.tool_calls:
            print_json(call.model_dump())
