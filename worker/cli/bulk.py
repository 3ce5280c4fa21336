"""`batchmill bulk`: a file of prompts in, a file of results out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .errors import ExitCode, usage_error
from .input_options import InputArgument, PromptOptions, ReadingOptions, input_file
from .line_options import LineOptions, line_settings
from .option_groups import with_option_groups
from .options import BrokerUrlOption, JsonOption
from .output_options import OutputOptions

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts, BulkOptions
    from batchmill.producer.bulk.run import BulkRun

    from .output_options import OutputFiles

_EPILOG = (
    "Examples:\n\n"
    "  batchmill bulk products.csv -o texts.csv --chat --template 'Describe {name} in one line.'"
    "\n\n"
    "  batchmill bulk requests.jsonl -o results.jsonl --errors errors.jsonl\n\n"
    "  batchmill bulk products.xlsx --dry-run --chat --template 'Describe {name} in one line.'\n\n"
    "After Ctrl-C or a crash, the same command resumes where it stopped.\n\n"
    "The exit code is 6 if lines failed."
)
_RUN = "Run"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the run proceeds."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Send nothing: show the first prompts, the number of lines, tokens and cost.",
            rich_help_panel=_RUN,
        ),
    ] = False
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A tokenizer.json, by which --dry-run counts tokens.",
            rich_help_panel=_RUN,
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Use only the first records; without it, the same command continues.",
            rich_help_panel=_RUN,
        ),
    ] = None
    timeout_s: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop after so many seconds; jobs in flight continue.",
            rich_help_panel=_RUN,
        ),
    ] = None
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Send the lines in the error file again, and empty it.",
            rich_help_panel=_RUN,
        ),
    ] = False
    in_flight: Annotated[
        int,
        typer.Option(
            min=1,
            max=100_000,
            help="Maximum number of unfinished jobs at a time.",
            rich_help_panel=_RUN,
        ),
    ] = 1000
    deduplicate: Annotated[
        bool,
        typer.Option(
            "--deduplicate",
            help="Generate only once for equal lines that have temperature 0 or a seed.",
            rich_help_panel=_RUN,
        ),
    ] = False
    run_id: Annotated[
        str,
        typer.Option(
            help="A new name generates everything again, instead of resuming.",
            rich_help_panel=_RUN,
        ),
    ] = ""
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Receives one signed POST when all jobs of the run have ended.",
            rich_help_panel=_RUN,
        ),
    ] = None

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            CommandError: they do not.
        """
        if self.webhook is not None and self.deduplicate:
            raise usage_error(
                "--webhook needs one job per line, and --deduplicate shares jobs: leave out one"
            )
        if self.webhook is not None and self.limit is not None:
            raise usage_error(
                "--webhook reports the end of all lines, and --limit leaves some out: leave out one"
            )
        if self.tokenizer is not None and not self.dry_run:
            raise usage_error("--tokenizer needs --dry-run")


def add_bulk_command(app: typer.Typer) -> None:
    """Add `bulk`."""
    app.command("bulk", epilog=_EPILOG)(with_setting_flags("bulk", with_option_groups(bulk)))


def bulk(
    input_path: InputArgument,
    output: OutputOptions,
    reading: ReadingOptions,
    prompt: PromptOptions,
    line: LineOptions,
    run: RunOptions,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run one job per line of a file, and write the results to another file.

    A line is a row of a table, with --template, or a request in JSON.
    """
    from .bulk_preview import show_preview

    run.check()
    with input_file(input_path) as path:
        if run.dry_run:
            files = _no_files(path)
            return show_preview(
                _options(path, files, reading, prompt, line, run), run.tokenizer, as_json=as_json
            )
        url = resolve_broker(broker_url)
        with output.files() as files:
            options = _options(path, files, reading, prompt, line, run)
            with _stdout_for_results(output.is_stdout):
                return _run_bulk(options, url, as_json=as_json)


def _options(
    path: Path,
    files: OutputFiles,
    reading: ReadingOptions,
    prompt: PromptOptions,
    line: LineOptions,
    run: RunOptions,
) -> BulkOptions:
    from batchmill.producer.bulk.options import BulkOptions
    from batchmill.producer.job.batch import parse_batch

    has_table = files.table is not None and files.table.format != "jsonl"
    return BulkOptions(
        input_path=path,
        output_path=files.output,
        errors_path=files.errors,
        lines=line_settings(prompt, line, has_table=has_table),
        reading=reading.checked(),
        table=files.table,
        max_in_flight=run.in_flight,
        deduplicate=run.deduplicate,
        run_id=run.run_id,
        batch=None if run.webhook is None else parse_batch({"webhook": run.webhook}),
        max_records=run.limit,
        retry_failed=run.retry_failed,
        timeout_s=run.timeout_s,
    )


def _no_files(path: Path) -> OutputFiles:
    from .output_options import OutputFiles

    return OutputFiles(path, path, None)


@contextmanager
def _stdout_for_results(is_needed: bool) -> Iterator[None]:
    """Print to stderr if standard output is for the results."""
    stdout = sys.stdout
    if is_needed:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout


def _run_bulk(options: BulkOptions, url: str, *, as_json: bool) -> int:
    from batchmill.producer import ProducerSettings
    from batchmill.producer.bulk.run import BulkRun
    from batchmill.producer.errors import ResultTimeout
    from batchmill.producer.store.broker_errors import broker_errors
    from batchmill.producer.store.replication import replica_wait
    from batchmill.producer.store.shards import Shards

    from .bulk_stall import StallWatch
    from .bulk_summary import print_summary
    from .bulk_view import BulkView

    settings = ProducerSettings()
    shards = Shards.from_url(url, replica_wait=replica_wait(settings))
    run = BulkRun(shards, settings, options)
    view = BulkView(quiet=as_json)
    stall = StallWatch(shards, view)

    def show(counts: BulkCounts) -> None:
        stall.observe(counts)
        view.show(counts)

    try:
        with broker_errors(url), view:
            run.run(show, view.note)
    except (KeyboardInterrupt, ResultTimeout) as stop:
        if isinstance(stop, KeyboardInterrupt):
            sys.stderr.write(_stopped(run))
        stall.report_waiting(run.counts)
        raise
    finally:
        shards.close()
    print_summary(run, options, view.elapsed_s, as_json=as_json)
    return ExitCode.UNFINISHED if run.counts.all_failed else ExitCode.OK


def _stopped(run: BulkRun) -> str:
    return (
        f"\nstopped at {run.counts.done}/{run.counts.total}; jobs in flight continue, and the "
        "same command collects their results\n"
    )
