"""Runs programs beside a test, and waits for conditions."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batchmill.producer.store.job_store import JobStore

from .prepared_python import PreparedProcess, prepared_python

Process = subprocess.Popen[bytes] | PreparedProcess

DEADLINE_S = 120
#: Settings of a worker that needs no model.
STUB = {"BATCHMILL_ENGINE": "stub", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
CLI = ("-m", "batchmill.worker.cli")
#: From a random place, because tests of another checkout may run on the same machine.
_PORTS = itertools.count(random.randrange(1000))


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, or fail after the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {deadline_s} s"
        time.sleep(0.02)


def run(*arguments: str, environment: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run Python to its end; return its output, or fail and show it."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def process(*arguments: str, environment: Mapping[str, str], log: Path) -> Iterator[Process]:
    """Run Python beside the test with its output in a file; end it with SIGTERM."""
    child = _start(*arguments, environment=environment, log=log)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise


@contextmanager
def killed_process(*arguments: str, environment: Mapping[str, str], log: Path) -> Iterator[Process]:
    """Run Python beside the test with its output in a file; kill it at the end."""
    child = _start(*arguments, environment=environment, log=log)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _start(*arguments: str, environment: Mapping[str, str], log: Path) -> Process:
    if arguments[:3] in ((*CLI, "worker"), (*CLI, "gateway")):
        return prepared_python().start(
            *arguments, environment={**os.environ, **environment}, log=log
        )
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )


@contextmanager
def ready_worker(
    url: str, store: JobStore, folder: Path, further: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a worker with the stub engine, and wait until it takes jobs.

    Args:
        url: Broker URL of the worker.
        store: Store that shows its heartbeat.
        folder: Folder for its log.
        further: Further variables of its environment.
    """
    log = folder / "worker.log"
    environment = {**STUB, "BATCHMILL_BROKER_URL": url, **(further or {})}
    with process(*CLI, "worker", environment=environment, log=log) as worker:

        def is_ready() -> bool:
            assert worker.poll() is None, log.read_text()
            return any(info.state == "ready" for info in store.list_workers())

        wait_until(is_ready, "starting the worker")
        yield


def free_port() -> int:
    """Return a loopback port that nothing uses.

    It is below the range from which Linux takes the ports of connections, and each process of
    pytest has a range of its own, so that it stays free until a program listens there.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20000 + 1000 * (process % 12)
    while True:
        port = first + next(_PORTS) % 1000
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def accepts(port: int) -> bool:
    """Return whether a process listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
