"""Runs a broker, a worker and `batchmill bulk` as processes, for the scripts of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

CLI = (sys.executable, "-m", "batchmill.worker.cli")
#: Settings of a stub engine that takes no time.
STUB = {
    "BATCHMILL_ENGINE": "stub",
    "BATCHMILL_STUB": json.dumps({"step_time_s": 0.0, "max_num_seqs": 256}),
}


class BulkMill:
    """Owns the processes that it starts, and the folder of their files."""

    def __init__(self, url: str, folder: Path, environment: dict[str, str]) -> None:
        self.url = url
        self.folder = folder
        self.output = folder / "out.jsonl"
        self.errors = folder / "err.jsonl"
        self.store = JobStore.from_url(url)
        self._environment = os.environ | environment | {"BATCHMILL_BROKER_URL": url}
        self._started: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it takes jobs."""
        before = {worker.name for worker in self.store.list_workers()}
        name = f"w{len(self._started)}@bench"
        worker = self._start("worker", "--worker-name", name)
        self.wait_for(
            lambda: any(
                found.name not in before and found.state == "ready"
                for found in self.store.list_workers()
            ),
            worker,
        )
        return worker

    def start_gateway(self, port: int) -> subprocess.Popen[bytes]:
        """Start a gateway with its files in the folder, and wait until it is ready."""
        files = str(self.folder / "files")
        options = ("--gateway-port", str(port), "--gateway-files-url", files)
        gateway = self._start("gateway", *options)

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    return True
            except OSError:
                return False

        self.wait_for(is_ready, gateway)
        return gateway

    def start_bulk(self, source: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start the command; it writes results to `output` and errors to `errors`."""
        files = ("-o", str(self.output), "--errors", str(self.errors))
        return self._start("bulk", str(source), *files, "--json", *options)

    def run_bulk(self, source: Path, *options: str) -> dict[str, Any]:
        """Run the command to its end and return its summary."""
        command = self.start_bulk(source, *options)
        command.wait()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return the summary that the last command printed."""
        path = self.folder / f"bulk-{len(self._started) - 1}.out"
        text = path.read_text().strip()
        if not text:
            raise SystemExit(f"bulk printed no summary:\n{path.with_suffix('.err').read_text()}")
        summary: dict[str, Any] = json.loads(text.splitlines()[-1])
        return summary

    def write_lines(self, lines: Iterable[object]) -> Path:
        """Write an input, and delete the output of the previous one."""
        path = self.folder / "in.jsonl"
        with path.open("w") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
        for old in (self.output, self.errors):
            old.unlink(missing_ok=True)
        return path

    def output_lines(self) -> list[dict[str, Any]]:
        """Return the lines of the output."""
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def num_output_lines(self) -> int:
        """Return the number of lines that the output has now."""
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0

    def wait_for(
        self, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Wait until a condition holds; exit if a process that it depends on has ended."""
        while not condition():
            if process is not None and process.poll() is not None:
                raise SystemExit(f"{process.args!r} ended with {process.returncode}: {self.folder}")
            time.sleep(0.05)

    def close(self) -> None:
        """Kill the processes that still run."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.store.close()

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        name = f"{command}-{len(self._started)}"
        with (
            (self.folder / f"{name}.out").open("wb") as out,
            (self.folder / f"{name}.err").open("wb") as err,
        ):
            process = subprocess.Popen(
                [*CLI, command, *arguments], env=self._environment, stdout=out, stderr=err
            )
        self._started.append(process)
        return process


@contextmanager
def bulk_mill(**environment: str) -> Iterator[BulkMill]:
    """Yield a mill with its own embedded broker, in a temporary folder."""
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedBroker(BrokerConfig(Path(name))) as broker,
    ):
        mill = BulkMill(broker.url, Path(name), environment)
        try:
            yield mill
        finally:
            mill.close()


def load_average() -> str:
    """Describe the load of the last minute, without which figures mean little."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
