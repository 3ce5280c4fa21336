"""The site of a run: servers, proxy, workers, deliverers and the receiver."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.connection import connect
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.signature import new_secret
from batchmill.worker.service_errors import BenchFailed
from batchmill.worker.webhooks.local_receiver import LOOPBACK

from .links import Link, Links
from .programs import Program, SelfInflictedEnd
from .receiver import ChaosReceiver
from .servers import ServerPair
from .timeline import Timeline

_NUM_DELIVERERS = 2
_CLI = (sys.executable, "-m", "batchmill.worker.cli")
_SECRET = new_secret()
_ALL_PORTS = "1-65535"
#: Settings that allow deliveries to this machine.
_TARGETS = {
    "WEBHOOK_ALLOW_HTTP": "true",
    "WEBHOOK_ALLOW_PORTS": _ALL_PORTS,
    "WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
}
#: Seconds that a program may take to end in order.
_STOP_S = 20.0
#: Seconds until workers must be ready: with a stub engine, and with a real one.
_READY_S = {"stub": 60.0, "real": 900.0}


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """Options of a site."""

    folder: Path
    #: `stub` or `real`.
    engine: str
    num_workers: int
    lease_s: float
    #: Seconds per step of the stub engine.
    step_time_s: float
    #: Jobs that a worker runs together; None is the workers' default.
    num_places: int | None
    #: Tokens of the first time slice of a job; 0 is off.
    slice_tokens: int
    #: Served name of the model, which is also that of the run's own queues.
    model: str
    #: URL of a server that is running already; None starts one.
    server_url: str | None
    has_replica: bool


class Site:
    """Owns all programs of a run. Use it in the main thread."""

    def __init__(self, options: SiteOptions) -> None:
        """Start the servers and the proxy."""
        self.options = options
        self.servers: ServerPair | None = None
        url = options.server_url
        if url is None:
            self.servers = ServerPair(options.folder, has_replica=options.has_replica)
            self.servers.start()
            url = self.servers.url
        self.links = Links(url)
        #: Never disturbed: through it the run observes.
        self.observer_link = self.links.add()
        self.client_link = self.links.add()
        self.worker_links = [self.links.add() for _ in range(options.num_workers)]
        self.deliverer_link = self.links.add()
        self.receiver = ChaosReceiver()
        self.store = JobStore(connect(self.observer_link.url))
        self.trace_path = options.folder / "computed"
        self.workers = [self._worker(number, link) for number, link in enumerate(self.worker_links)]
        self.deliverers = [self._deliverer(number) for number in range(_NUM_DELIVERERS)]
        self.self_inflicted_ends: list[SelfInflictedEnd] = []
        self.timeline = Timeline()

    @property
    def programs(self) -> list[Program]:
        """Workers and deliverers."""
        return [*self.workers, *self.deliverers]

    @property
    def disturbed_links(self) -> list[Link]:
        """The links of all programs and of the clients."""
        return [self.client_link, *self.worker_links, self.deliverer_link]

    @property
    def client_settings(self) -> ProducerSettings:
        """Settings of clients: deliveries to the receiver are allowed."""
        return ProducerSettings(
            broker_url=self.client_link.url,
            model=self.options.model,
            webhook_allow_http=True,
            webhook_allow_ports=(_ALL_PORTS,),
            webhook_allow_networks=(LOOPBACK,),
        )

    def start(self, say: Callable[[str], None]) -> None:
        """Start the programs and wait until every worker takes jobs.

        Raises:
            BenchFailed: a worker ended, or they took too long.
        """
        self.receiver.__enter__()
        for program in self.programs:
            program.start()
        say(f"waiting for {len(self.workers)} workers")
        deadline_s = time.monotonic() + _READY_S[self.options.engine]
        while len(self.ready_workers()) < len(self.workers):
            if ended := self.restart_ended():
                raise BenchFailed(
                    f"{ended.program} ended with exit code {ended.exit_code} at its start; end of "
                    f"its log:\n{ended.log_tail}"
                )
            if time.monotonic() > deadline_s:
                raise BenchFailed(
                    f"workers were not ready within {_READY_S[self.options.engine]:g} s; see the "
                    f"logs in {self.options.folder}"
                )
            time.sleep(0.05)

    def ready_workers(self) -> list[WorkerInfo]:
        """Return the heartbeats of this site's workers that take jobs."""
        names = {worker.name for worker in self.workers}
        beats = self.store.list_workers()
        return [beat for beat in beats if beat.state == "ready" and beat.name in names]

    def restart_ended(self) -> SelfInflictedEnd | None:
        """Start ended programs again, and keep the ends that no fault had caused."""
        found = None
        for program in self.programs:
            pid = program.pid
            if end := program.restart_if_ended():
                self.self_inflicted_ends.append(end)
                found = end
            if program.pid != pid:
                self.timeline.start_program(program.name)
        return found

    def stop(self) -> None:
        """End everything in order."""
        for program in self.programs:
            program.signal(signal.SIGCONT)
            program.signal(signal.SIGTERM, ends=True)
        for program in self.programs:
            program.wait_until_ended(_STOP_S)
        self.receiver.__exit__()
        self.store.close()
        self.links.close()
        if self.servers is not None:
            self.servers.stop()

    def _worker(self, number: int, link: Link) -> Program:
        options = self.options
        values: dict[str, object] = {
            "BROKER_URL": link.url,
            "ENGINE": options.engine,
            "WORKER_NAME": f"w{number}@chaos",
            "LEASE_S": options.lease_s,
            "SWEEP_INTERVAL_S": 0.5,
            "REANNOUNCE_GRACE_S": 2,
            "HEARTBEAT_INTERVAL_S": 1,
            "ENGINE_STALL_S": max(2.0, options.lease_s),
            **_TARGETS,
        }
        if options.slice_tokens:
            values["TIME_SLICE_TOKENS"] = options.slice_tokens
        if options.num_places is not None:
            values["MAX_NUM_SEQS"] = options.num_places
        if options.engine == "stub":
            stub = {"step_time_s": options.step_time_s, "trace_path": str(self.trace_path)}
            values |= {"STUB": json.dumps(stub), "MODEL": options.model}
        else:
            values |= {"SERVED_MODEL_NAME": options.model, "DTYPE": "float32"}
        return self._program(f"w{number}@chaos", "worker", values, keeps_settings=True)

    def _deliverer(self, number: int) -> Program:
        values: dict[str, object] = {
            "BROKER_URL": self.deliverer_link.url,
            "WEBHOOK_SECRET": _SECRET,
            "WEBHOOK_SCHEDULE_S": "0,0.1,0.3,0.5,1,1,2,2,2,4,4,4,8,8,8,8,8,8",
            "WEBHOOK_BUSY_WAIT_S": 0.2,
            # Short, because the receiver fails on purpose: its events must all arrive in the end.
            "WEBHOOK_BREAKER_WAIT_S": 1,
            "WEBHOOK_BREAKER_MAX_WAIT_S": 4,
            "WEBHOOK_TOTAL_TIMEOUT_S": 4,  # and so the lease of an event
            "WEBHOOK_POLL_INTERVAL_S": 0.1,
            **_TARGETS,
        }
        return self._program(f"deliverer-{number}", "deliver", values, keeps_settings=False)

    def _program(
        self, name: str, command: str, values: dict[str, object], *, keeps_settings: bool
    ) -> Program:
        """Return a program; only a worker with a real engine takes BATCHMILL_* from outside."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("BATCHMILL_")
            or (keeps_settings and self.options.engine == "real")
        }
        environment |= {f"BATCHMILL_{key}": str(value) for key, value in values.items()}
        environment["PYTHONSAFEPATH"] = "1"
        log_path = self.options.folder / f"{name}.log"
        return Program(name, [*_CLI, command], environment, log_path)
