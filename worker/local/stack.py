"""The children of `batchmill up` and `demo`: broker, worker, deliverer, gateway and Flower."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis

from batchmill.producer.install_hint import install_command
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.secrets_from_files import without_file
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.service_errors import BrokerFailed

from .broker_config import BrokerConfig
from .embedded_broker import EmbeddedBroker
from .flower import Flower
from .gateway_child import GatewayChild
from .metrics_ports import metrics_environment
from .start_phases import StartPhases
from .state_dir import make_private_directory
from .supervisor import ChildSpec, Supervisor

#: Seconds that a worker may take to release its jobs, a deliverer to finish its attempts, and
#: Flower to end.
_WORKER_STOP_S, _DELIVERER_STOP_S, _FLOWER_STOP_S = 60.0, 30.0, 5.0
_GATEWAY_STOP_S = 30.0
_BROKER_RESTART_WAIT_S = 1.0
_GATEWAY_LIBRARIES = ("fsspec", "python_multipart", "starlette", "uvicorn")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of a stack: which children, and where they listen and write."""

    #: Private folder for broker data and logs; created if it is missing.
    state_dir: Path
    #: The embedded broker's socket.
    socket_path: Path
    #: BATCHMILL_* variables of the children.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: An external broker to use instead of the embedded one.
    broker_url: str | None = None
    #: Loopback port for the embedded broker, instead of its socket.
    broker_port: int | None = None
    #: Port for Flower; None takes 5555 or a free one.
    flower_port: int | None = None
    with_flower: bool = True
    with_deliverer: bool = True
    #: Port for the gateway; None takes 8000 or a free one.
    gateway_port: int | None = None
    with_gateway: bool = False


class LocalStack:
    """Owns the children of one stack, and restarts those that die."""

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        """Choose the children; none runs before `start`.

        Args:
            options: of the stack.
            say: shows a line about an event of a child.
        """
        self._options = options
        self._say = say
        self._broker = None if options.broker_url is not None else _embedded_broker(options)
        self.broker_url = options.broker_url or self._embedded.url
        self._flower = self._choose_flower()
        self._gateway = self._choose_gateway()
        self._supervisor: Supervisor | None = None
        self._broker_down_since_s: float | None = None
        self._store = JobStore.from_url(self.broker_url)

    @property
    def flower_url(self) -> str | None:
        """URL of Flower; None if it does not run."""
        return None if self._flower is None else self._flower.url

    @property
    def gateway_url(self) -> str | None:
        """URL of the gateway; None if it does not run."""
        return None if self._gateway is None else self._gateway.url

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is embedded in this stack."""
        return self._broker is not None

    @property
    def log_paths(self) -> dict[str, Path]:
        """Name and log file of every child."""
        assert self._supervisor is not None
        paths = {child.spec.name: child.spec.log_path for child in self._supervisor.children}
        if self._broker is not None:
            paths["broker"] = self._broker.log_path
        return paths

    @property
    def pids(self) -> dict[str, int | None]:
        """Name and process id of every child; None for one that is down."""
        assert self._supervisor is not None
        pids = {child.spec.name: child.pid for child in self._supervisor.children}
        if self._broker is not None:
            pids["broker"] = self._broker.pid
        return pids

    def start(self) -> None:
        """Start all children, and return while the model may still be loading.

        Raises:
            BrokerError: the embedded broker cannot run.
        """
        make_private_directory(self._options.state_dir)
        logs = self._options.state_dir / "logs"
        make_private_directory(logs)
        if self._broker is not None:
            self._broker.start()
        self._supervisor = Supervisor(self._specs(logs), self._say)
        self._supervisor.start()

    def is_ready(self) -> bool:
        """Return whether the worker has loaded its model and Flower is healthy."""
        has_worker = self.ready_worker() is not None
        return has_worker and (self._flower is None or self._flower.is_healthy())

    def wait_until_ready(self, *, timeout_s: float, progress: Callable[[], None]) -> None:
        """Wait until the worker takes jobs.

        Args:
            timeout_s: limit in seconds.
            progress: called several times a second while waiting.

        Raises:
            ChildFailed: a child ended, or the limit was reached.
        """
        assert self._supervisor is not None

        def is_ready() -> bool:
            progress()
            return self.is_ready()

        self._supervisor.wait_until(is_ready, activity="starting", timeout_s=timeout_s)

    def ready_worker(self) -> WorkerInfo | None:
        """Return this stack's worker if it takes jobs; None before, or while the broker is down."""
        try:
            workers = self._store.list_workers()
        except redis.RedisError:
            return None
        # By pid: others may share the broker, and the heartbeat of a dead one stays for a while.
        given = {**os.environ, **self._options.environment}.get("BATCHMILL_WORKER_NAME")
        ending = given or f"-{self.pids['worker']}@{socket.gethostname()}"
        ready = (w for w in workers if w.state == "ready" and w.name.endswith(ending))
        return next(ready, None)

    @property
    def has_started(self) -> bool:
        """Whether there is a child to stop."""
        return self._supervisor is not None

    def start_phases(self) -> StartPhases:
        """Return the phases of the worker's start."""
        assert self._supervisor is not None
        worker = next(c for c in self._supervisor.children if c.spec.name == "worker")
        return StartPhases(worker.log)

    def restart_dead_children(self, *, in_first_start: bool = False) -> None:
        """Restart children that died, the broker included. Call it several times a second.

        Raises:
            ChildMisconfigured: in the first start, one ended because of its settings or its model.
        """
        assert self._supervisor is not None
        self._restart_dead_broker()
        self._supervisor.restart_ended_children(in_first_start=in_first_start)

    def stop(self) -> None:
        """End everything in order: worker, deliverer, Flower, broker."""
        if self._supervisor is not None:
            self._supervisor.stop()
        self._store.close()
        if self._broker is not None:
            self._broker.stop()

    def kill(self) -> None:
        """Kill the children at once, so that a running `stop` has nothing to wait for."""
        if self._supervisor is not None:
            self._supervisor.kill()

    @property
    def _embedded(self) -> EmbeddedBroker:
        assert self._broker is not None
        return self._broker

    def _restart_dead_broker(self) -> None:
        """Restart a broker that died; its data is on disk, and the children reconnect."""
        if self._broker is None or self._broker.pid is not None:
            return
        now_s = time.monotonic()
        if self._broker_down_since_s is None:
            self._broker_down_since_s = now_s
            self._say(f"the broker died; restarting it (log: {self._broker.log_path})")
        if now_s - self._broker_down_since_s < _BROKER_RESTART_WAIT_S:
            return
        self._broker.stop()
        try:
            self._broker.start()
        except BrokerFailed as error:
            self._broker_down_since_s = now_s
            self._say(str(error))
        else:
            self._broker_down_since_s = None
            self._say(f"the broker runs again (pid {self._broker.pid})")

    def _choose_flower(self) -> Flower | None:
        if not self._options.with_flower:
            return None
        if importlib.util.find_spec("flower") is None:
            self._say(
                f"Flower is left out because it is not installed: {install_command('monitor')}"
            )
            return None
        return Flower(self._options.flower_port, self._options.state_dir)

    def _choose_gateway(self) -> GatewayChild | None:
        if not self._options.with_gateway:
            return None
        if any(importlib.util.find_spec(name) is None for name in _GATEWAY_LIBRARIES):
            command = install_command("gateway")
            self._say(f"the gateway is left out because it is not installed: {command}")
            return None
        return GatewayChild(self._options.gateway_port, self._options.state_dir)

    def _specs(self, logs: Path) -> list[ChildSpec]:
        own_variables = {
            **self._options.environment,
            "BATCHMILL_BROKER_URL": self.broker_url,
            # Keeps a kernels/ folder in the current directory from being imported as a package.
            "PYTHONSAFEPATH": "1",
        }
        environment = without_file(own_variables, os.environ)
        own = [sys.executable, "-m", "batchmill.worker.cli"]
        specs = [
            _spec("worker", [*own, "worker"], environment, logs, _WORKER_STOP_S),
        ]
        if self._options.with_deliverer:
            command = [*own, "deliver"]
            deliverer_environment = environment | metrics_environment("deliverer")
            specs.append(
                _spec("deliverer", command, deliverer_environment, logs, _DELIVERER_STOP_S)
            )
        if self._gateway is not None:
            gateway_environment = environment | self._gateway.environment()
            gateway_environment |= metrics_environment("gateway")
            command = [*own, "gateway"]
            specs.append(_spec("gateway", command, gateway_environment, logs, _GATEWAY_STOP_S))
        if self._flower is not None:
            flower_environment = environment | self._flower.environment()
            command = self._flower.command
            specs.append(_spec("flower", command, flower_environment, logs, _FLOWER_STOP_S))
        return specs


def _embedded_broker(options: StackOptions) -> EmbeddedBroker:
    return EmbeddedBroker(
        BrokerConfig(options.state_dir, options.socket_path, port=options.broker_port)
    )


def _spec(
    name: str, command: list[str], environment: Mapping[str, str], logs: Path, stop_timeout_s: float
) -> ChildSpec:
    return ChildSpec(name, tuple(command), environment, logs / f"{name}.log", stop_timeout_s)
