"""`ShardStores`: in which shard the gateway finds or keeps what a request is about.

With one broker there is one store, and its errors are those of the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from redis.exceptions import RedisError

from batchmill.producer.protocol.calls.call import Call, Read
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.shard_list import Shard
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.replication import NotConfirmed
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S, ShardDoubts
from batchmill.producer.store.shard_errors import ShardFailures

Value = TypeVar("Value")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ShardStore:
    """The store of one broker: the only one, or a shard."""

    shard: Shard
    store: AsyncStore
    #: The broker, or the list of all shards.
    url: str

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


Work = Callable[[AsyncStore], Awaitable[Value]]


@dataclass(frozen=True, slots=True)
class Parts(Generic[Value]):
    """What each shard has, in the order of the list, and which did not reply."""

    by_shard: dict[str, Value]
    missing: tuple[str, ...]

    @property
    def values(self) -> list[Value]:
        """What the shards have that replied."""
        return list(self.by_shard.values())


class ShardStores:
    """Finds stores. Owns the memory of which shards have failed lately, for one event loop."""

    def __init__(self, shards: AsyncShards, url: str, default_model: str) -> None:
        """Take the shards, which stay the caller's.

        Args:
            shards: all of them.
            url: the broker, or the list of shards.
            default_model: of batches that name none.
        """
        self.shards = shards
        self._url = url
        self._default_model = default_model
        self._doubts = ShardDoubts()

    async def at(self, shard: Shard) -> ShardStore:
        """Return the store of a shard of the list.

        Raises:
            BrokerUnavailable: it does not reply, or belongs to another list.
        """
        with broker_errors(self._url):
            return ShardStore(shard, await self.shards.at(shard), self._url)

    async def of_job(self, job_id: str) -> ShardStore:
        """Return the store that has a job.

        Raises:
            BrokerUnavailable: its shard, or one in which it may be, does not reply.
        """
        with broker_errors(self._url):
            return self._found(await self.shards.of_job(job_id))

    async def placed(self, job: NewJob) -> tuple[ShardStore, NewJob]:
        """Return the store for a new job, and the job under an id that leads there.

        Raises:
            BrokerUnavailable: the shard does not reply, or the job has an idempotency key that may
                be in use in one that does not.
        """
        with broker_errors(self._url):
            store, tagged = await self.shards.place(job)
            return self._found(store), tagged

    async def of_batch(self, batch_id: str) -> ShardStore:
        """Return the store that has a batch; errors as of `of_job`."""
        with broker_errors(self._url):
            return self._found(await self.shards.of_batch(batch_id))

    async def of_file(self, file_id: str) -> ShardStore:
        """Return the store that has the record of an upload; errors as of `of_job`."""
        with broker_errors(self._url):
            return self._found(await self.shards.of_file(file_id))

    async def of_tenant(self, tenant: str) -> ShardStore:
        """Return the store that gets a tenant's new files and batches; errors as of `at`."""
        with broker_errors(self._url):
            return self._found(await self.shards.of_work(self._default_model, tenant))

    async def of_new_batch(
        self, batch_id: str, tenant: str, *, is_keyed: bool
    ) -> tuple[ShardStore, str]:
        """Return the store in which a batch is opened, and its id.

        Args:
            batch_id: made of its idempotency key, or a new one; without a shard.
            tenant: whose it is.
            is_keyed: whether the id is made of a key, so that the batch may exist.

        Raises:
            BrokerUnavailable: the shard does not reply, or one in which the batch may be.
        """
        with broker_errors(self._url):
            new_id = await self.shards.new_batch_id(
                batch_id, self._default_model, tenant, is_keyed=is_keyed
            )
            return self._found(await self.shards.of_batch(new_id)), new_id

    async def each(self, work: Work[Value]) -> Parts[Value]:
        """Do something in all shards at once, and return what those that reply have.

        Raises:
            BrokerUnavailable: there is one broker, and it does not reply.
        """
        failures = ShardFailures()
        with broker_errors(self._url):
            found = await asyncio.gather(
                *(self._part(shard, work, failures) for shard in self.shards.list.shards)
            )
        names = [shard.name for shard in self.shards.list.shards]
        by_shard = {name: some[0] for name, some in zip(names, found, strict=True) if some}
        return Parts(by_shard, failures.names)

    async def all(self, work: Work[Value]) -> list[Value]:
        """Do something in all shards.

        Raises:
            BrokerUnavailable: some failed; all were tried.
        """
        failures = ShardFailures()
        with broker_errors(self._url):
            found = [await self._part(shard, work, failures) for shard in self.shards.list.shards]
            failures.check()
        return [value for some in found for value in some]

    async def first(
        self, work: Work[Value | None], *, key: str | None = None
    ) -> tuple[Value | None, tuple[str, ...]]:
        """Return the first value that a shard has, and the shards that failed before.

        Args:
            work: returns None for a shard that has none.
            key: the order of the shards is by a hash of this; None takes that of the list. Those
                that failed lately come last.

        Raises:
            BrokerUnavailable: no shard replied.
        """
        failures = ShardFailures()
        shards = self.shards.list.shards if key is None else self.shards.list.in_order_of(key)
        has_reply = False
        with broker_errors(self._url):
            for shard in sorted(shards, key=lambda each: self._doubts.is_doubted(each.name)):
                for value in await self._part(shard, work, failures):
                    has_reply = True
                    if value is not None:
                        return value, failures.names
            if not has_reply:
                failures.check()
        return None, failures.names

    def _found(self, store: AsyncStore) -> ShardStore:
        return ShardStore(self.shards.shard_of(store), store, self._url)

    async def _part(self, shard: Shard, work: Work[Value], failures: ShardFailures) -> list[Value]:
        """Return the value of one shard, in a list; an empty one if it failed."""
        with failures.of(shard.name), self._limited(shard.name):
            return [await work(await self.shards.at(shard))]
        return []

    @contextmanager
    def _limited(self, name: str) -> Iterator[None]:
        """Limit the wait for a shard, and note whether it failed."""
        if not name:
            yield
            return
        try:
            with time_limit(self._doubts.limit_s(name, COMPARE_LIMIT_S)):
                yield
        except NotConfirmed:
            raise
        except RedisError as error:
            if self._doubts.note(name, has_failed=True):
                _log.warning("shard_away", shard=name, error=type(error).__name__)
            raise
        if self._doubts.note(name, has_failed=False):
            _log.info("shard_back", shard=name)


def missing_shards(names: Sequence[str]) -> dict[str, list[str]]:
    """Return what a list says of shards that did not reply: nothing if all did."""
    return {"missing_shards": list(names)} if names else {}
