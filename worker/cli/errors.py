"""Errors of commands: their exit codes, and how they are written to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from .missing_package import missing_package_message
from .unforeseen import is_debugging, unforeseen_message


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    #: An unforeseen error, or a check that found problems.
    FAILED = 1
    #: The command line is wrong.
    USAGE = 2
    #: The broker is missing or does not reply.
    BROKER = 3
    #: The job, or the action on it, was refused; nothing was stored or changed.
    REJECTED = 4
    #: The job, batch, event, dead letter or endpoint does not exist.
    NOT_FOUND = 5
    #: The job ended without a completion.
    UNFINISHED = 6
    #: Waiting took longer than allowed; the job continues.
    TIMEOUT = 7
    #: A setting, or a package that the command needs, is missing or invalid.
    CONFIG = 8


class CommandError(Exception):
    """An error of a command itself, reported in one line.

    Attributes:
        code: machine-readable name of the error.
        exit_code: exit code of the process.
    """

    def __init__(self, message: str, *, code: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


def usage_error(message: str) -> CommandError:
    """Return the error of a wrong command line."""
    return CommandError(message, code="usage", exit_code=ExitCode.USAGE)


def report_error(error: Exception, *, as_json: bool, command: str = "") -> ExitCode:
    """Write an error to stderr, as text or JSON, and return the exit code for it.

    Args:
        error: the error.
        as_json: write JSON.
        command: name of the command that ran, for the message of a missing package.

    Raises:
        Exception: the error itself, if it is unforeseen and the user debugs.
    """
    described = _describe(error, command)
    if described is None:
        if is_debugging() and not as_json:
            raise error
        described = "internal", ExitCode.FAILED, unforeseen_message(error), {}
    code, exit_code, message, extra = described
    # The notes say where it happened: the line of a file, the batch.
    message = "; ".join([message, *getattr(error, "__notes__", ())])
    if as_json:
        sys.stderr.write(json.dumps({"error": {"code": code, "message": message, **extra}}) + "\n")
    else:
        sys.stderr.write(f"Error: {message}\n")
    return exit_code


def is_parser_error(error: Exception) -> bool:
    """Return whether an error is the parser's own. Typer brings its own copy of click."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _describe(error: Exception, command: str) -> tuple[str, ExitCode, str, dict[str, Any]] | None:
    """Return code, exit code, message and extra fields of an error; None if it is unforeseen."""
    if isinstance(error, ModuleNotFoundError):
        missing = missing_package_message(error, command)
        return None if missing is None else ("missing_package", ExitCode.CONFIG, missing, {})
    if isinstance(error, CommandError):
        return error.code, error.exit_code, str(error), {}
    if is_parser_error(error):
        format_message: Callable[[], str] = error.format_message  # type: ignore[attr-defined]
        return "usage", ExitCode.USAGE, format_message(), {}
    return _describe_known(error)


def _describe_known(error: Exception) -> tuple[str, ExitCode, str, dict[str, Any]] | None:
    # Imported here because `batchmill --help` needs none of them.
    import redis
    from pydantic import ValidationError

    from batchmill.producer import errors as producer
    from batchmill.worker.errors import WorkerError
    from batchmill.worker.service_errors import (
        BrokerError,
        ChildMisconfigured,
        NoStateFolder,
        NoWebhookSecret,
        ServiceError,
    )

    match error:
        case producer.JobRejected():
            extra = {"param": error.param, "retryable": error.retryable}
            return error.code, ExitCode.REJECTED, str(error), extra
        case producer.WrongState():
            extra = {"job_id": error.job_id, "state": error.state.value}
            return error.code, ExitCode.REJECTED, str(error), extra
        case producer.JobUnfinished():
            return error.code, ExitCode.UNFINISHED, str(error), {"job_id": error.job_id}
        case producer.NotReplicated():
            return error.code, ExitCode.BROKER, str(error), {"job_ids": error.job_ids}
        case producer.BatchmillError():
            return error.code, _exit_code(error), str(error), {}
        case redis.RedisError():
            message = (
                f"the broker does not reply: {error}; check --broker-url, or run `batchmill up`"
            )
            return "broker_unavailable", ExitCode.BROKER, message, {}
        case BrokerError():
            return "broker_failed", ExitCode.BROKER, str(error), {}
        case NoWebhookSecret():
            return "no_webhook_secret", ExitCode.CONFIG, str(error), {}
        case ChildMisconfigured():
            return "invalid_settings", ExitCode.CONFIG, str(error), {}
        case NoStateFolder():
            return "no_state_folder", ExitCode.CONFIG, str(error), {}
        case ServiceError() | WorkerError():
            return _snake(type(error).__name__), ExitCode.FAILED, str(error), {}
        case ValidationError():
            return "invalid_settings", ExitCode.CONFIG, _settings_message(error), {}
        case _:
            return None


def _exit_code(error: Exception) -> ExitCode:
    """Return the exit code of an error of the producer that has no further fields."""
    from batchmill.producer import errors as producer

    match error:
        case producer.UnknownJob() | producer.UnknownBatch():
            return ExitCode.NOT_FOUND
        case producer.InvalidQuery() | producer.BulkFileError() | producer.TenantRefused():
            return ExitCode.USAGE
        case producer.ResultTimeout():
            return ExitCode.TIMEOUT
        case producer.BrokerUnavailable():
            return ExitCode.BROKER
        case producer.TracesUnavailable():
            return ExitCode.CONFIG
        case _:
            return ExitCode.FAILED


def _settings_message(error: Any) -> str:
    """Return a message that names each invalid setting by its variable, without its value."""
    problems = []
    for item in error.errors(include_input=False, include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        # Further parts of the location are keys inside of a value, or branches of a union.
        name = "".join(str(part) for part in item["loc"][:1]).upper()
        problems.append(f"BATCHMILL_{name}: {message}" if name else message)
    return "invalid settings: " + "; ".join(problems)


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
