"""What every command shares: its output, its errors and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Annotated, Any

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="JSON on stdout, errors as JSON on stderr.")
]
BrokerUrlOption = Annotated[
    str | None,
    typer.Option(
        "--broker-url",
        metavar="URL",
        help="redis://, rediss:// or unix://. Default: BATCHMILL_BROKER_URL, else the embedded "
        "broker of `batchmill up`.",
        show_default=False,
    ),
]


#: Characters; wider than any table.
_UNBOUNDED = 100_000


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    #: Something unforeseen, or a check that found problems.
    FAILED = 1
    #: The command line is wrong.
    USAGE = 2
    #: No broker, or it does not answer.
    BROKER = 3
    #: The job, or what was to be done with it, was refused; nothing was stored or changed.
    REJECTED = 4
    #: There is no such job or dead letter.
    NOT_FOUND = 5
    #: The job ended without a completion.
    UNFINISHED = 6
    #: The time to wait is over; the job goes on.
    TIMEOUT = 7
    #: A setting is missing or cannot work.
    CONFIG = 8


class CommandError(Exception):
    """An error of a command itself, told in one line.

    Attributes:
        code: machine-readable.
        exit_code: of the process.
    """

    def __init__(self, message: str, *, code: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


def usage(message: str) -> CommandError:
    """Return the error of a wrong command line."""
    return CommandError(message, code="usage", exit_code=ExitCode.USAGE)


def print_json(data: Any) -> None:
    """Write one JSON value as one line."""
    # Text that no terminal or pipe could encode is escaped rather than an error.
    sys.stdout.write(json.dumps(data, ensure_ascii=not _is_utf8(sys.stdout.encoding)) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table for people. No cell is cut: the first one is often an id, to be copied.

    A terminal's width folds the other columns; a pipe or a file gets one line a row.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column, Table
    from rich.text import Text

    name, *others = columns
    table = Table(
        Column(name, no_wrap=True),
        *(Column(other, overflow="fold") for other in others),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: cells are data, not markup
    console = Console()
    if not console.is_terminal:
        unbounded = console.options.update(width=_UNBOUNDED)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)


def report_error(error: Exception, *, as_json: bool) -> ExitCode:
    """Write an error to stderr in the asked-for form, and return the exit code for it.

    Raises:
        Exception: the error itself, where it is a bug of ours and a traceback can be shown.
    """
    described = _describe(error)
    if described is None and not as_json:
        raise error
    code, exit_code, message, extra = described or (
        "internal",
        ExitCode.FAILED,
        f"{type(error).__name__}: {error}",
        {},
    )
    # Where it happened: a line of a file, the batch that it belongs to.
    message = "; ".join([message, *getattr(error, "__notes__", ())])
    if as_json:
        sys.stderr.write(json.dumps({"error": {"code": code, "message": message, **extra}}) + "\n")
    else:
        sys.stderr.write(f"Error: {message}\n")
    return exit_code


def is_usage_error(error: Exception) -> bool:
    """Whether an error is the command line parser's own (typer brings its own copy of click)."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _describe(error: Exception) -> tuple[str, ExitCode, str, dict[str, Any]] | None:
    """Code, exit code, message and further fields of an error; None for one not foreseen."""
    if isinstance(error, CommandError):
        return error.code, error.exit_code, str(error), {}
    if is_usage_error(error):
        format_message: Callable[[], str] = error.format_message  # type: ignore[attr-defined]
        return "usage", ExitCode.USAGE, format_message(), {}
    return _describe_known(error)


def _describe_known(error: Exception) -> tuple[str, ExitCode, str, dict[str, Any]] | None:
    # Imported here: `batchmill --help` needs neither.
    import redis
    from pydantic import ValidationError

    from batchmill.producer import errors as producer

    from .errors import WorkerError
    from .service_errors import BrokerError, NoWebhookSecret, ServiceError

    match error:
        case producer.JobRejected():
            extra = {"param": error.param, "retryable": error.retryable}
            return error.code, ExitCode.REJECTED, str(error), extra
        case producer.UnknownJob():
            return "unknown_job", ExitCode.NOT_FOUND, str(error), {}
        case producer.UnknownBatch():
            return "unknown_batch", ExitCode.NOT_FOUND, str(error), {}
        case producer.WrongState():
            extra = {"job_id": error.job_id, "state": error.state.value}
            return "wrong_state", ExitCode.REJECTED, str(error), extra
        case producer.InvalidQuery():
            return "invalid_query", ExitCode.USAGE, str(error), {}
        case producer.JobUnfinished():
            return error.code, ExitCode.UNFINISHED, str(error), {"job_id": error.job_id}
        case producer.ResultTimeout():
            return "timeout", ExitCode.TIMEOUT, str(error), {}
        case producer.BulkFileError():
            return "bulk_file", ExitCode.USAGE, str(error), {}
        case producer.BrokerUnavailable():
            return "broker_unavailable", ExitCode.BROKER, str(error), {}
        case redis.RedisError():
            message = f"the broker does not answer: {error}; check --broker-url, or `batchmill up`"
            return "broker_unavailable", ExitCode.BROKER, message, {}
        case BrokerError():
            return "broker_failed", ExitCode.BROKER, str(error), {}
        case NoWebhookSecret():
            return "no_webhook_secret", ExitCode.CONFIG, str(error), {}
        case ServiceError() | WorkerError():
            return _snake(type(error).__name__), ExitCode.FAILED, str(error), {}
        case ValidationError():
            return "invalid_settings", ExitCode.CONFIG, _settings_message(error), {}
        case _:
            return None


def _settings_message(error: Any) -> str:
    """Name each wrong setting by its variable, without its value."""
    problems = []
    for item in error.errors(include_input=False, include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        name = "_".join(str(part) for part in item["loc"]).upper()
        problems.append(f"BATCHMILL_{name}: {message}" if name else message)
    return "settings are wrong: " + "; ".join(problems)


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def _is_utf8(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "") == "utf8"
