"""`Backend`: the gateway's connection to the queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

from batchmill.producer import AsyncClient
from batchmill.producer.broker_url import find_broker
from batchmill.producer.errors import BatchmillError
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.store.adapters import RegisteredAdapter, read_adapters
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.replication import replica_wait

from .adapters import RegisteredNames
from .check_turns import CheckTurns
from .file_store import FileStore
from .media_takers import MediaTakers
from .settings import GatewaySettings
from .shard_stores import ShardStores

#: Seconds for which the list of workers is used again.
_WORKERS_S = 1.0


class Backend:
    """Owns a client and stores of the same broker or shards, for one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Connect at the first call."""
        self.settings = settings
        self.url = find_broker(settings.broker_url)
        self.client = AsyncClient(self.url, settings=settings)
        self._stores = AsyncShards.from_url(
            self.url,
            timeout_s=settings.broker_timeout_s,
            replica_wait=replica_wait(
                settings, min_replicas=None, call_timeout_s=settings.broker_timeout_s
            ),
            key_ring=settings.key_ring,
            objects=settings.object_store,
        )
        self.shards = ShardStores(self._stores, self.url, settings.served_name)
        self.files = FileStore(settings.gateway_files_url, settings.key_ring)
        self.turns = CheckTurns()
        self._running: set[asyncio.Task[Any]] = set()
        self._has_intake = asyncio.Event()
        self._served: dict[str, int] = {}
        self._kinds: dict[str, set[str]] = {}
        self._media: dict[str, MediaTakers] = {}
        self._served_until = 0.0
        #: Shards whose workers are not known, because they did not reply.
        self.unknown_shards: tuple[str, ...] = ()
        self._adapters: list[RegisteredAdapter] = []
        self._steering_vectors: list[RegisteredAdapter] = []
        self._adapters_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self._stores.aclose()

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
            found = await self.shards.each(AsyncStore.list_workers)
            served: dict[str, int] = {}
            self._kinds, self._media, self.unknown_shards = {}, {}, found.missing
            for worker in (worker for workers in found.values for worker in workers):
                self._kinds.setdefault(worker.model, set()).update(worker.kinds)
                self._media.setdefault(worker.model, MediaTakers()).add(worker)
                since = worker.started_at_ms // 1000
                served[worker.model] = min(since, served.get(worker.model, since))
            self._served, self._served_until = served, time.monotonic() + _WORKERS_S
        return self._served

    async def adapters_for(self, tenant: str) -> dict[str, RegisteredAdapter]:
        """Return the LoRA adapters that a tenant's jobs may name, by name."""
        if time.monotonic() >= self._adapters_until:
            found, _ = await self.shards.first(lambda store: store.read(read_adapters()))
            vectors, _ = await self.shards.first(
                lambda store: store.read(read_adapters(keys.STEERING_VECTORS))
            )
            self._adapters, self._steering_vectors = found or [], vectors or []
            self._adapters_until = time.monotonic() + _WORKERS_S
        return {each.name: each for each in self._adapters if each.is_for(tenant)}

    async def names_for(self, tenant: str) -> RegisteredNames:
        """Return the adapters and the steering vectors that a tenant's jobs may name."""
        adapters = await self.adapters_for(tenant)
        vectors = {each.name: each for each in self._steering_vectors if each.is_for(tenant)}
        return RegisteredNames(adapters, vectors)

    def kinds_of(self, model: str) -> list[str]:
        """Return the kinds of job that live workers serve with a model of `served_models`."""
        return sorted(self._kinds.get(model, ()))

    def media_of(self, model: str) -> list[str]:
        """Return the kinds of media that live workers take for a model of `served_models`."""
        return sorted(self._media.get(model, MediaTakers()).kinds)

    async def media_takers(self, model: str) -> MediaTakers | None:
        """Return what is known of the pictures and sounds that a model's workers take.

        None if nothing is: it has no live worker, or a shard does not reply.
        """
        await self.served_models()
        return None if self.unknown_shards else self._media.get(model)

    async def is_known_model(self, model: str) -> bool:
        """Return whether jobs of a model can be served, as far as can be told.

        A model whose worker has died is known as long as it has jobs; and without any worker
        nothing can be told, nor while a shard does not reply.
        """
        served = await self.served_models()
        if not served or model in served or model == self.settings.served_name:
            return True
        if self.unknown_shards:
            return True
        queues = keys.queue_names(model) if keys.is_model_name(model) else ()

        def queue(pipeline: Any) -> None:
            for name in queues:
                pipeline.zscore(keys.QUEUES, name)

        parts = await self.shards.each(lambda store: store.read(Read(queue, list[Any])))
        return bool(parts.missing) or any(
            score is not None for scores in parts.values for score in scores
        )
