"""Workers that a benchmark runs beside itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def bench_worker(
    url: str, name: str, given: Mapping[str, str], settings: Sequence[str]
) -> Iterator[None]:
    """Run a worker.

    Args:
        url: of the broker.
        name: of the worker.
        given: its environment variables.
        settings: further ones, which win, as NAME=VALUE without the prefix.
    """
    environment = {
        **os.environ,
        "BATCHMILL_BROKER_URL": url,
        "BATCHMILL_WORKER_NAME": f"{name}@bench",
        "BATCHMILL_LOG_LEVEL": "ERROR",
        **given,
    }
    pairs = (setting.partition("=") for setting in settings)
    environment |= {f"BATCHMILL_{key}": value for key, _, value in pairs}
    command = [sys.executable, "-m", "batchmill.worker.cli", "worker"]
    process = subprocess.Popen(command, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
