"""Starts Python programs from a process that has already imported what they need.

A worker spends more processor time on its imports than on the few jobs of a test, and the suite
starts hundreds. What is started here is a process of its own, with its own environment, log,
signals and status, which was forked after the imports. Tests of how programs start, and of what
they import, start them with `subprocess`.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("prepared_python_server.py")
#: Variables that the interpreter or the C library reads when it starts, and those that packages
#: read when they are imported, which the server has done with its own.
_READ_AT_START = (
    *("GLIBC", "LANG", "LC_", "LD_", "MALLOC", "OMP_", "PYTHON", "TZ"),
    *("CELERY_", "C_", "FORCE_COLOR", "FSSPEC_", "KOMBU_", "NO_COLOR", "OTEL_PYTHON_"),
)
#: Those among them that the server takes care of, or that only matter for imports.
_HARMLESS = {"PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}

#: What every worker and gateway does the same at its start.
_PREPARATION = """
import batchmill.worker.cli.main
import batchmill.worker.consumer.run_worker
import batchmill.worker.gateway.server
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source
for name in SCRIPT_NAMES:
    script_source(name)
"""


class PreparedProcess:
    """A started program, with what the tests use of `subprocess.Popen`."""

    def __init__(self, server: PreparedPython, pid: int) -> None:
        self.pid = pid
        self._server = server
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the status as `subprocess` has it, or None while it runs."""
        if self.returncode is None:
            self._server.report()  # which sets it
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the status.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


class PreparedPython:
    """A server process that has run a preparation, such as imports, and forks for each program."""

    def __init__(self, preparation: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, str(_SERVER), str(theirs.fileno()), preparation],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._channel = ours
        self._replies = ours.makefile("rb")
        self._lock = threading.RLock()
        #: By their ids, which the system gives to others once the server has their statuses.
        self._running: dict[int, PreparedProcess] = {}
        self._numbers = itertools.count()
        self._at_start = _read_at_start(os.environ)

    def start(
        self, *arguments: str, environment: Mapping[str, str], log: Path
    ) -> PreparedProcess | subprocess.Popen[bytes]:
        """Start what `python *arguments` would: `-c program` or `-m module argument...`.

        Args:
            arguments: of the interpreter.
            environment: all variables of the program.
            log: file that its standard output and error replace.
        """
        if _read_at_start(environment) != self._at_start:
            return _start_cold(arguments, environment, log)
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "folder": os.getcwd(),
            "log": str(log),
        }
        log.write_bytes(b"")  # there is a log to read as soon as this returns
        with self._lock:
            started = PreparedProcess(self, self._ask(request)["pid"])
            self._running[started.pid] = started
        return started

    def report(self) -> None:
        """Set the statuses of the programs that have ended."""
        with self._lock:
            self._ask({"report": True})

    def close(self) -> None:
        """End the server. The programs run on, as they do when a test process ends."""
        self._replies.close()
        self._channel.close()
        self._server.wait(timeout=60)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a request, and set the statuses that come with it."""
        number = next(self._numbers)
        self._channel.sendall(json.dumps({"number": number, **request}).encode() + b"\n")
        while True:
            line = self._replies.readline()
            if not line:
                raise RuntimeError("the process that starts programs has ended")
            reply: dict[str, Any] = json.loads(line)
            for pid, status in reply["ended"].items():
                if ended := self._running.pop(int(pid), None):
                    ended.returncode = status
            if reply["number"] == number:  # else a timeout of pytest has interrupted its reading
                return reply


@cache
def prepared_python() -> PreparedPython:
    """Return this test process' server for workers and gateways."""
    server = PreparedPython(_PREPARATION)
    atexit.register(server.close)
    return server


def _start_cold(
    arguments: tuple[str, ...], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=output, stderr=output
        )


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and name not in _HARMLESS
    }
