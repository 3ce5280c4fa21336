"""`JobStores`: the stores of all shards for services and operators; `EveryShard`: one look at all.

With one URL there is one store, and its errors are raised as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar, cast

from batchmill.producer.shard_list import ShardList, read_shard_list

from .call_limits import time_limit
from .job_store import JobStore
from .shard_doubts import ShardDoubts
from .shard_errors import ShardFailures
from .shards import Shards

Value = TypeVar("Value")


class JobStores:
    """Owns a job store per shard. Thread-safe."""

    def __init__(
        self, shard_list: ShardList, stores: Sequence[JobStore], *, part_limit_s: float | None
    ) -> None:
        """Take a store for each shard of the list, in its order.

        Args:
            shard_list: the shards.
            stores: their stores.
            part_limit_s: seconds that a look at all shards waits for each of several; None waits
                as long as any call.
        """
        self.shards = Shards(shard_list, stores)
        self._part_limit_s = None if shard_list.only is not None else part_limit_s
        self._doubts = ShardDoubts()

    @classmethod
    def from_url(cls, url: str, *, timeout_s: float | None, part_limit_s: float | None) -> Self:
        """Connect to the broker of a URL, or to all shards of a list; nothing is sent yet.

        Raises:
            ValueError: the list, a URL or the timeout is invalid.
        """
        shard_list = read_shard_list(url)
        stores = [
            JobStore.from_url(shard.url, timeout_s=timeout_s, shard_name=shard.name)
            for shard in shard_list.shards
        ]
        return cls(shard_list, stores, part_limit_s=part_limit_s)

    def close(self) -> None:
        """Close the connections to all shards."""
        self.shards.close()

    # The stores that were given are job stores.

    def at(self, name: str) -> JobStore:
        """Return the store of a shard.

        Raises:
            ValueError: no shard has this name.
            ShardMismatch: it belongs to another list.
        """
        return cast(JobStore, self.shards.at(self.shards.list.named(name)))

    def of_job(self, job_id: str) -> JobStore:
        """Return the store of a job; any store if the job does not exist."""
        return cast(JobStore, self.shards.of_job(job_id))

    def of_batch(self, batch_id: str) -> JobStore:
        """Return the store of a batch; any store if the batch does not exist."""
        return cast(JobStore, self.shards.of_batch(batch_id))

    def look(self) -> EveryShard:
        """Begin a look at all shards."""
        return EveryShard(self)

    def limit_s(self, name: str) -> float | None:
        """Return how long a look waits for a shard: not long for one that has just failed."""
        limit_s = self._part_limit_s
        return None if limit_s is None else self._doubts.limit_s(name, limit_s)

    def note(self, name: str, *, has_failed: bool) -> None:
        """Note whether a shard has failed."""
        self._doubts.note(name, has_failed=has_failed)


class EveryShard:
    """One look at all shards: what those that reply have, and which do not. Not thread-safe."""

    def __init__(self, stores: JobStores) -> None:
        self._stores = stores
        self._failures = ShardFailures()

    @property
    def is_alone(self) -> bool:
        """Whether there is one broker, and not a list of shards."""
        return self._stores.shards.list.only is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shards, in the order of the list; "" for a single broker."""
        return tuple(shard.name for shard in self._stores.shards.list.shards)

    @property
    def missing(self) -> tuple[str, ...]:
        """The shards that have failed so far."""
        return self._failures.names

    def describe_missing(self) -> list[str]:
        """Return a sentence on each shard that has failed so far."""
        return [f"shard {name!r} does not reply" for name in self.missing]

    def check(self) -> None:
        """Raise an error that names all shards that have failed so far.

        Raises:
            ShardsFailed: there are some.
        """
        self._failures.check()

    def named(self, work: Callable[[JobStore], Value]) -> list[tuple[str, Value]]:
        """Do something in each shard, and return the names and values of those that replied."""
        return list(self._replies(work, self._failures))

    def named_long(self, work: Callable[[JobStore], Value]) -> list[tuple[str, Value]]:
        """Do the same with work that may take long.

        Only the first reply of a shard is waited for as shortly as in other looks.
        """
        found = []
        for name, _ in self.named(lambda store: store.client.ping()):
            with self._failures.of(name):
                found.append((name, work(self._stores.at(name))))
        return found

    def each(self, work: Callable[[JobStore], Value]) -> list[Value]:
        """Do something in each shard, and return the values of those that replied, in order."""
        return [value for _, value in self.named(work)]

    def each_long(self, work: Callable[[JobStore], Value]) -> list[Value]:
        """Do work that may take long, as `named_long`, and return the values alone."""
        return [value for _, value in self.named_long(work)]

    def find(self, work: Callable[[JobStore], Value | None]) -> tuple[JobStore, Value] | None:
        """Return the first shard that has something, with it; None if no shard has it.

        Raises:
            ShardsFailed: it may be in a shard that failed.
        """
        failures = ShardFailures()  # of no interest if another shard has it
        for name, value in self._replies(work, failures):
            if value is not None:
                return self._stores.at(name), value
        failures.check()
        return None

    def _replies(
        self, work: Callable[[JobStore], Value], failures: ShardFailures
    ) -> Iterator[tuple[str, Value]]:
        for shard in self._stores.shards.list.shards:
            found: list[Value] = []
            with failures.of(shard.name), time_limit(self._stores.limit_s(shard.name)):
                found.append(work(self._stores.at(shard.name)))
            self._stores.note(shard.name, has_failed=not found)
            yield from ((shard.name, value) for value in found)
