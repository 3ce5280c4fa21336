"""The mill of the worker's tests: real worker processes with the stub engine on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from batchmill.producer.broker_url import celery_url
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol.records import JobRecord, WorkerInfo
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.stub_output import stub_text, stub_token

from ..conftest import RedisServer
from ..support.prepared_python import PreparedProcess, prepared_python

_RUN = (
    "import sys; from batchmill.worker.consumer.run_worker import run_worker; "
    "from batchmill.worker.settings import WorkerSettings; sys.exit(run_worker(WorkerSettings()))"
)


class WorkerProcess:
    """One worker process, with its log in a file."""

    def __init__(
        self, name: str, environment: dict[str, str], log_path: Path, program: str = _RUN
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | PreparedProcess
        if program == _RUN:
            self.process = prepared_python().start(
                "-c", program, environment=environment, log=log_path
            )
            return
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Signal the worker, wait for its end and return its status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


class Mill:
    """One server, its job store and the workers that a test starts."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.store = JobStore.from_url(url)
        self.folder = folder
        self.trace_path = folder / "trace"
        self.workers: list[WorkerProcess] = []
        #: Other programs of the test, which must not outlive it either: the server is shared.
        self.programs: list[subprocess.Popen[bytes]] = []
        # Acts as any Celery user; it does not know our app.
        self.celery = Celery("other", broker=celery_url(url), backend=celery_url(url))
        # Kombu shares connections between apps with the same options. Those of an earlier test may
        # have been killed with its faults.
        self.celery.conf.broker_transport_options = {"mill": str(folder)}

    def start_worker(
        self,
        name: str = "w1",
        *,
        stub: dict[str, Any] | None = None,
        program: str = _RUN,
        **settings: object,
    ) -> WorkerProcess:
        """Start a worker and wait until it takes jobs."""
        worker = self.launch(name, stub=stub, program=program, **settings)
        self.wait_for(
            lambda: self._has_ended(worker) or self.heartbeat(worker) is not None,
            f"{name} to be ready",
            timeout_s=60,
        )
        return worker

    def launch(
        self,
        name: str = "w1",
        *,
        stub: dict[str, Any] | None = None,
        program: str = _RUN,
        **settings: object,
    ) -> WorkerProcess:
        """Start a worker, or another program that runs one."""
        values: dict[str, object] = {
            "broker_url": self.url,
            "engine": "stub",
            "stub": json.dumps(
                # Room for jobs that last as long as a test needs them to.
                {"trace_path": str(self.trace_path), "max_model_len": 32_768, **(stub or {})}
            ),
            "worker_name": f"{name}@test",
            "lease_s": 2,
            "sweep_interval_s": 0.5,
            "reannounce_grace_s": 1,
            "drain_timeout_s": 10,
            # Tests of faults must know which worker has which job.
            "takeover": False,
            **settings,
        }
        kept = {key: value for key, value in os.environ.items() if key[:10] != "BATCHMILL_"}
        given = {f"BATCHMILL_{key.upper()}": str(value) for key, value in values.items()}
        worker = WorkerProcess(
            f"{name}@test", kept | given, self.folder / f"{name}-{len(self.workers)}.log", program
        )
        self.workers.append(worker)
        return worker

    def heartbeat(self, worker: WorkerProcess) -> WorkerInfo | None:
        """Return the heartbeat of a worker that is ready, or None."""
        beats = {beat.name: beat for beat in self.store.list_workers()}
        beat = beats.get(worker.name)
        return beat if beat is not None and beat.state == "ready" else None

    def engine_pid(self, worker: WorkerProcess) -> int:
        beat = self.heartbeat(worker)
        assert beat is not None
        return int(beat.stats["engine_pid"])

    def submit(self, prompt: str = "a prompt", **fields: Any) -> str:
        """Submit a job as a client does, and return its id."""
        fields = {"max_tokens": 16, "seed": 7, **fields}
        if "messages" not in fields:
            fields["prompt"] = prompt
        new = prepare(GenerationJob(**fields), ProducerSettings())
        self.store.submit(new)
        return new.job_id

    def record(self, job_id: str) -> JobRecord:
        record = self.store.load(job_id)
        assert record is not None
        return record

    def state(self, job_id: str) -> JobState:
        return self.record(job_id).state

    def wait_ended(self, *job_ids: str, timeout_s: float = 60.0) -> list[JobRecord]:
        """Wait until jobs have ended and return their records."""
        for job_id in job_ids:
            self.wait_for(
                partial(self._is_terminal, job_id),
                f"the end of {job_id}",
                timeout_s=timeout_s,
            )
        return [self.record(job_id) for job_id in job_ids]

    def wait_tokens(self, job_id: str, num_tokens: int) -> None:
        self.wait_for(
            lambda: len(self.store.read_tokens(job_id)) >= num_tokens, f"{num_tokens} tokens"
        )

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """Wait until a condition holds; if it does not in time, fail with the workers' logs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {w.name}\n{w.log[-6000:]}" for w in self.workers)
                pytest.fail(f"waited {timeout_s} s for {what}\n{logs}")
            time.sleep(0.02)

    def computed(self, job_id: str) -> list[int]:
        """Return the output positions that engines computed for a job, in order."""
        lines = self.trace_path.read_text().splitlines() if self.trace_path.exists() else []
        pairs = (line.rsplit(" ", 1) for line in lines)
        return [int(position) for request, position in pairs if request.startswith(f"{job_id}.")]

    def close(self) -> None:
        for process in [*(worker.process for worker in self.workers), *self.programs]:
            if process.poll() is None:
                process.kill()
                process.wait()
        # Celery's results unsubscribe when they are collected, and the server may be gone by then.
        self.celery.backend.result_consumer.subscribed_to.clear()
        self.celery.close()
        self.store.close()

    def _is_terminal(self, job_id: str) -> bool:
        return self.state(job_id).is_terminal

    @staticmethod
    def _has_ended(worker: WorkerProcess) -> bool:
        if worker.process.poll() is not None:
            pytest.fail(f"{worker.name} ended at its start:\n{worker.log[-6000:]}")
        return False


def stored_result(record: JobRecord) -> dict[str, Any]:
    """Return the result in a record."""
    assert record.result is not None
    result: dict[str, Any] = json.loads(record.result)
    return result


def stored_error(record: JobRecord) -> dict[str, Any]:
    """Return the error in a record."""
    assert record.error is not None
    error: dict[str, Any] = json.loads(record.error)
    return error


def expected_tokens(prompt: str, num_tokens: int, seed: int = 7) -> list[int]:
    return [stub_token(prompt, seed, position) for position in range(num_tokens)]


@pytest.fixture
def mill(redis_url: str, tmp_path: Path) -> Iterator[Mill]:
    """A mill on an empty server."""
    mill = Mill(redis_url, tmp_path)
    yield mill
    mill.close()


@pytest.fixture
def private_mill(private_redis_server: RedisServer, tmp_path: Path) -> Iterator[Mill]:
    """A mill on a server that only this test uses, so that it can stop and restart the server."""
    mill = Mill(private_redis_server.url, tmp_path)
    yield mill
    mill.close()


@pytest.fixture(scope="module")
def running_mill(
    _session_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mill]:
    """A mill with one worker, shared by the tests of a module, which leave it running."""
    mill = Mill(_session_server.url, tmp_path_factory.mktemp("mill"))
    mill.store.client.flushall()
    mill.start_worker()
    yield mill
    mill.close()


@pytest.fixture(scope="session")
def reference() -> Callable[..., tuple[list[int], str]]:
    """A function that returns the stub engine's tokens and text for a prompt, without a worker."""

    def generate(prompt: str, num_tokens: int, seed: int = 7) -> tuple[list[int], str]:
        token_ids = expected_tokens(prompt, num_tokens, seed)
        return token_ids, stub_text(token_ids)

    return generate
