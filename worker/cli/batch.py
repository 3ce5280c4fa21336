"""`batchmill batch`: many jobs as one batch, with counts, a state and one webhook at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Self

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .batch_progress import BatchProgressReader
from .batch_usage import batch_cost, describe_usage
from .broker_connection import missing, open_every_shard, open_store_of, resolve_broker
from .command_settings import with_setting_flags
from .errors import ExitCode, usage_error
from .input_options import InputArgument, PromptOptions, ReadingOptions, input_file
from .line_options import LineOptions, line_settings
from .option_groups import with_option_groups
from .options import (
    BrokerUrlOption,
    IntervalOption,
    JsonOption,
    MetadataOption,
    TimeoutOption,
    WatchOption,
    parse_pairs,
)
from .progress_view import follow_progress

if TYPE_CHECKING:
    from batchmill.producer import BatchEntry, BatchStatus, Client, JobRejected
    from batchmill.producer.bulk.lines import LineSettings
    from batchmill.producer.job.line import BulkLine

_group = typer.Typer(
    help="Batches: many jobs with one state, counts and one webhook.", no_args_is_help=True
)
_CREATE_EPILOG = (
    "Examples:\n\n"
    "  batchmill batch create requests.jsonl --webhook https://example.com/hook\n\n"
    "  batchmill batch create requests.jsonl --idempotency-key nightly --errors refused.jsonl\n\n"
    "With --idempotency-key, the same command resumes after any interruption."
)
_SHOW_EPILOG = (
    "Examples:\n\n  batchmill batch show batch_…\n\n  batchmill batch show batch_… --watch"
)
_Batch = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch.")]
_Webhook = Annotated[
    str | None, typer.Option(metavar="URL", help="Receives one signed POST when the batch ends.")
]
_Events = Annotated[
    list[str] | None,
    typer.Option(
        "--webhook-event",
        help="Send only this event: completed, failed, expired or cancelled. \\[all]",
    ),
]
_Ttl = Annotated[float | None, typer.Option(help="Seconds after which unfinished jobs expire.")]
_Key = Annotated[
    str | None, typer.Option(help="Creating a batch again with the same key resumes the first one.")
]
_Errors = Annotated[
    Path | None,
    typer.Option(
        metavar="ERR",
        help="File for refused lines. Without it, the first refused line fails the batch.",
    ),
]
_Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of batches.")]
_Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT", help="File to write instead of stdout."),
]
_COLUMNS = ("batch", "state", "total", "completed", "failed", "created")


def add_batch_commands(app: typer.Typer) -> None:
    """Add `batch create`, `show`, `list`, `cancel` and `results`."""
    _group.command("create", epilog=_CREATE_EPILOG)(
        with_setting_flags("create", with_option_groups(create_batch))
    )
    _group.command("show", epilog=_SHOW_EPILOG)(show_batch)
    _group.command("list", epilog="Example:\n\n  batchmill batch list --limit 10")(list_batches)
    _group.command("cancel", epilog="Example:\n\n  batchmill batch cancel batch_…")(cancel_batch)
    _group.command(
        "results", epilog="Example:\n\n  batchmill batch results batch_… -o results.jsonl"
    )(write_batch_results)
    app.add_typer(_group, name="batch")


def create_batch(
    input_path: InputArgument,
    reading: ReadingOptions,
    prompt: PromptOptions,
    line: LineOptions,
    webhook: _Webhook = None,
    webhook_event: _Events = None,
    metadata: MetadataOption = None,
    ttl_s: _Ttl = None,
    idempotency_key: _Key = None,
    errors: _Errors = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit the lines of a file as one batch, and print its id."""
    from batchmill.producer.plural import pluralize

    options: dict[str, Any] = {
        "webhook": webhook,
        "webhook_events_filter": webhook_event or None,
        "metadata": parse_pairs("--metadata", metadata) or None,
        "ttl_s": ttl_s,
        "idempotency_key": idempotency_key,
    }
    fields = {name: value for name, value in options.items() if value is not None}
    with input_file(input_path) as path, ExitStack() as stack:
        lines = _read_lines(path, reading, line_settings(prompt, line, priority=None))
        client = stack.enter_context(_open_client(broker_url))
        refused = stack.enter_context(_RefusedLines(errors))
        batch = client.create_batch(lines, on_rejected=refused.write if errors else None, **fields)
    if as_json:
        print_json(batch.model_dump(mode="json"))
        return
    print(batch.id)
    if refused.count:
        sys.stderr.write(f"{pluralize(refused.count, 'line')} refused: {errors}\n")


def show_batch(
    batch_id: _Batch,
    watch: WatchOption = False,
    interval_s: IntervalOption = 1.0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a batch, how many of its jobs have ended, their tokens, and the ETA."""
    with _open_client(broker_url) as client, open_store_of(broker_url, batch_id) as store:
        reader = BatchProgressReader(client, store, batch_id)
        if watch:
            follow_progress(reader.read, interval_s, as_json=as_json)
            return
        found = reader.read()
        cost = batch_cost(found.status, store)
    if as_json:
        priced = None if cost is None else {"amounts": cost.amounts, "unpriced": cost.unpriced}
        print_json(found.model_dump(mode="json") | {"cost": priced})
        return
    _print_batch(found.status, as_json=False)
    print(describe_usage(found.status, cost))
    if not found.has_ended:
        print(found.describe())


def list_batches(
    limit: _Limit = 100, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """List batches, newest first."""
    from batchmill.producer.client.batch_verbs import newest_batches
    from batchmill.producer.store.batches import joined_batches

    with open_every_shard(broker_url) as shards:
        parts = shards.each(lambda store: newest_batches(store, limit))
        batches = joined_batches(parts, limit)
        if as_json:
            rows = [batch.model_dump(mode="json") for batch in batches]
            print_json({"batches": rows} | missing(shards))
            return
        print_table(
            "1 batch" if len(batches) == 1 else f"{len(batches)} batches",
            _COLUMNS,
            (_table_row(batch) for batch in batches),
        )


def cancel_batch(
    batch_id: _Batch, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Cancel the unfinished jobs of a batch. Running ones stop at their next checkpoint."""
    with _open_client(broker_url) as client:
        _print_batch(client.cancel_batch(batch_id), as_json=as_json)


def write_batch_results(
    batch_id: _Batch,
    output: _Output = None,
    timeout_s: TimeoutOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Wait for a batch and write its results as OpenAI batch output, in the order of the input.

    Failed lines are written with their error, and the exit code is then 6.
    """
    from batchmill.producer.plural import pluralize

    num_lines = num_failed = 0
    with ExitStack() as stack:
        client = stack.enter_context(_open_client(broker_url))
        file = sys.stdout if output is None else stack.enter_context(_open_for_writing(output))
        for entry in client.batch_results(batch_id, timeout_s=timeout_s):
            line = _result_line(batch_id, entry)
            file.write(json.dumps(line, ensure_ascii=file is sys.stdout) + "\n")
            num_lines, num_failed = num_lines + 1, num_failed + (line["response"] is None)
    if output is not None and as_json:
        print_json({"lines": num_lines, "failed": num_failed, "output": str(output)})
    elif output is not None:
        print(f"{pluralize(num_lines, 'line')}, {num_failed} failed: {output}")
    return ExitCode.UNFINISHED if num_failed else ExitCode.OK


def _open_client(broker_url: str | None) -> Client:
    from batchmill.producer import Client

    return Client(resolve_broker(broker_url))


def _read_lines(path: Path, reading: ReadingOptions, settings: LineSettings) -> Iterator[BulkLine]:
    from batchmill.producer.bulk.lines import check_template, read_lines
    from batchmill.producer.files.source import RecordFile

    source = RecordFile(path, reading.checked())
    check_template(source, settings)
    for note in source.notes:
        sys.stderr.write(f"note: {note}\n")
    return (line for record in source.records() for line in read_lines(record, settings))


def _result_line(batch_id: str, entry: BatchEntry) -> dict[str, Any]:
    from batchmill.producer.bulk.result_lines import ended_line
    from batchmill.producer.job.line import LineKind

    name = f"batch_req_{batch_id.removeprefix('batch_')}_{entry.index + 1}"
    kind = LineKind(entry.endpoint or LineKind.TEXT)
    return ended_line(name, entry.custom_id or f"line-{entry.index + 1}", kind, entry.job)


class _RefusedLines:
    """Writes refused lines to a file, which starts empty: a repeated command finds all of them."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.count = 0

    def __enter__(self) -> Self:
        self._file = None if self._path is None else _open_for_writing(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, index: int, error: JobRejected) -> None:
        """Write the error of a refused line."""
        from batchmill.producer.bulk.result_lines import error_line

        self.count += 1
        if self._file is not None:
            name = f"line-{index + 1}"
            line = error_line(name, error.custom_id or name, error.code, str(error))
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _open_for_writing(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise usage_error(f"{path} cannot be written: {error.strerror}") from None


def _print_batch(batch: BatchStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(batch.model_dump(mode="json"))
        return
    print_table(batch.id, _COLUMNS[1:], [_table_row(batch)[1:]])
    for error in batch.errors.data if batch.errors else ():
        print(f"{error.code}: {error.message}" + (f" (line {error.line})" if error.line else ""))


def _table_row(batch: BatchStatus) -> tuple[object, ...]:
    numbers = batch.request_counts
    created = format_time_ms(batch.created_at * 1000)
    return (
        *(batch.id, batch.status.value, numbers.total, numbers.completed, numbers.failed),
        created,
    )
