"""`Backend`: the gateway's connection to the queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from batchmill.producer import AsyncClient
from batchmill.producer.broker_url import find_broker
from batchmill.producer.errors import BatchmillError
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Call, Read
from batchmill.producer.store.adapters import RegisteredAdapter, read_adapters
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.replication import replica_wait

from .check_turns import CheckTurns
from .file_store import FileStore
from .settings import GatewaySettings

Value = TypeVar("Value")
#: Seconds for which the list of workers is used again.
_WORKERS_S = 1.0


class Backend:
    """Owns a client and a store of the same broker, for one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Connect at the first call."""
        self.settings = settings
        self.url = find_broker(settings.broker_url)
        self.client = AsyncClient(self.url, settings=settings)
        self.store = AsyncStore.from_url(
            self.url,
            timeout_s=settings.broker_timeout_s,
            replica_wait=replica_wait(
                settings, min_replicas=None, call_timeout_s=settings.broker_timeout_s
            ),
            key_ring=settings.key_ring,
            objects=settings.object_store,
        )
        self.files = FileStore(settings.gateway_files_url, settings.key_ring)
        self.turns = CheckTurns()
        self._running: set[asyncio.Task[Any]] = set()
        self._has_intake = asyncio.Event()
        self._served: dict[str, int] = {}
        self._kinds: dict[str, set[str]] = {}
        self._served_until = 0.0
        self._adapters: list[RegisteredAdapter] = []
        self._adapters_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self.store.aclose()

    async def read(self, read: Read[Value]) -> Value:
        """Read in one round trip.

        Raises:
            BrokerUnavailable: the broker does not reply.
        """
        with broker_errors(self.url):
            return await self.store.read(read)

    async def run(self, call: Call[Value]) -> Value:
        """Run one script, and wait for the replicas that are asked for.

        Raises:
            BrokerUnavailable: the broker does not reply.
        """
        with broker_errors(self.url):
            return await self.store.run_confirmed(call)

    def cancel_later(self, job_id: str) -> None:
        """Cancel a job from a place that cannot wait: its client has gone away."""
        self.run_later(self.client.cancel(job_id))

    def run_later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run what no client waits for. Errors of the broker are dropped."""

        async def run() -> None:
            with contextlib.suppress(BatchmillError):
                await work

        task = asyncio.get_running_loop().create_task(run())
        self._running.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._running.discard)

    def wake_intake(self) -> None:
        """Let a reader of files look for a batch now."""
        self._has_intake.set()

    async def sleep_until_intake(self, timeout_s: float) -> None:
        """Wait until `wake_intake` is called, or for a while."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_intake.wait(), timeout_s)
        self._has_intake.clear()

    async def served_models(self) -> dict[str, int]:
        """Return the models of live workers, each with the start of its first worker in seconds."""
        if time.monotonic() >= self._served_until:
            with broker_errors(self.url):
                workers = await self.store.list_workers()
            served: dict[str, int] = {}
            self._kinds = {}
            for worker in workers:
                self._kinds.setdefault(worker.model, set()).update(worker.kinds)
                since = worker.started_at_ms // 1000
                served[worker.model] = min(since, served.get(worker.model, since))
            self._served, self._served_until = served, time.monotonic() + _WORKERS_S
        return self._served

    async def adapters_for(self, tenant: str) -> dict[str, RegisteredAdapter]:
        """Return the LoRA adapters that a tenant's jobs may name, by name."""
        if time.monotonic() >= self._adapters_until:
            self._adapters = await self.read(read_adapters())
            self._adapters_until = time.monotonic() + _WORKERS_S
        return {each.name: each for each in self._adapters if each.is_for(tenant)}

    def kinds_of(self, model: str) -> list[str]:
        """Return the kinds of job that live workers serve with a model of `served_models`."""
        return sorted(self._kinds.get(model, ()))

    async def is_known_model(self, model: str) -> bool:
        """Return whether jobs of a model can be served, as far as can be told.

        A model whose worker has died is known as long as it has jobs; and without any worker
        nothing can be told.
        """
        served = await self.served_models()
        if not served or model in served or model == self.settings.served_name:
            return True
        queues = keys.queue_names(model) if keys.is_model_name(model) else ()

        def queue(pipeline: Any) -> None:
            for name in queues:
                pipeline.zscore(keys.QUEUES, name)

        scores: list[Any] = await self.read(Read(queue, list))
        return any(score is not None for score in scores)
