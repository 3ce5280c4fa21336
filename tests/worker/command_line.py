"""Runs the command line for tests: as a process, or inside this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.main import main

COMMAND = [sys.executable, "-m", "batchmill.worker.cli"]
_TERMINAL = {"COLUMNS": "200", "TERM": "dumb"}


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process, as a user does."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **_TERMINAL, **environment},
    )


@dataclass(frozen=True)
class CommandResult:
    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str, **environment: str) -> CommandResult:
    """Run a command like `run`, but in this process, which saves the start of Python."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["batchmill", *arguments])
        for name, value in {**_TERMINAL, **environment}.items():
            patch.setenv(name, value)
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    return CommandResult(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def error_of(result: subprocess.CompletedProcess[str] | CommandResult) -> dict[str, Any]:
    """Return the error that a command with --json printed, after checking that stdout is empty.

    A command that waits for a job writes notes before it, a line of JSON each.
    """
    assert result.stdout == ""
    error: dict[str, Any] = json.loads(result.stderr.splitlines()[-1])["error"]
    return error


def complete(store: JobStore, job_id: str, text: str = "an answer") -> None:
    """Bring a job to its end, as a worker does."""
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    result = {"id": job_id, "model": "demo", "status": "completed", "text": text}
    store.complete(
        job_id,
        fence=claim.fence,
        state=JobState.COMPLETED,
        result=json.dumps(result | {"finish_reason": "stop"}),
        token_ids=[5, 6],
    )
