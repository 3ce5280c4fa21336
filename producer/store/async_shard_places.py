"""`AsyncShardPlaces`: which shard has a job, a batch or an upload, and the stores of all shards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from redis.exceptions import RedisError

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.shard_list import Shard, ShardList, read_shard_list, shard_name_of

from .async_store import AsyncStore
from .call_limits import time_limit
from .existence import KeysOf, batch_keys, exist, file_keys, job_keys
from .replication import ReplicaWait
from .shard_doubts import COMPARE_LIMIT_S, ShardDoubts
from .shard_errors import ShardFailures
from .shard_mark import ShardMark, check_mark, note_mark, read_mark, unknown_shard_error

#: Seconds for which a check of a shard's mark is enough for new work.
_CHECK_S: Final = 10.0


class AsyncShardPlaces:
    """Owns a store per shard. Every method may raise `redis.exceptions.RedisError`.

    Those that return stores also raise `ShardMismatch`, if a shard belongs to another list.
    """

    def __init__(self, shard_list: ShardList, stores: Sequence[AsyncStore]) -> None:
        """Take a store for each shard of the list, in its order."""
        self.list = shard_list
        self._stores = list(stores)
        self._only = self._stores[0] if shard_list.only is not None else None
        self._places = {shard.name: place for place, shard in enumerate(shard_list.shards)}
        self._checked_at: dict[int, float] = {}
        self._marks: dict[int, ShardMark] = {}
        self._doubts = ShardDoubts()
        self._has_compared = False

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_s: float | None = None,
        replica_wait: ReplicaWait | None = None,
        key_ring: KeyRing | None = None,
        objects: ObjectStore | None = None,
    ) -> Self:
        """Connect to the broker of a URL, or to all shards of a list; nothing is sent yet.

        Raises:
            ValueError: the list, a URL or the timeout is invalid.
        """
        shard_list = read_shard_list(url)
        stores = [
            AsyncStore.from_url(
                shard.url,
                timeout_s=timeout_s,
                replica_wait=replica_wait,
                key_ring=key_ring,
                objects=objects,
                shard_name=shard.name,
            )
            for shard in shard_list.shards
        ]
        return cls(shard_list, stores)

    @property
    def first(self) -> AsyncStore:
        """The store of the first shard; with one URL, of the broker."""
        return self._stores[0]

    async def aclose(self) -> None:
        """Close the connections to all shards."""
        for store in self._stores:
            await store.aclose()

    async def every(self) -> Sequence[AsyncStore]:
        """Return the stores of all shards, in the order of the list."""
        for place in range(len(self._stores)):
            await self._check(place)
        return self._stores

    async def at(self, shard: Shard) -> AsyncStore:
        """Return the store of a shard of the list."""
        return await self._at(self._places[shard.name])

    async def of_job(self, job_id: str) -> AsyncStore:
        """Return the store of a job; any store if the job does not exist."""
        return await self._store_of(job_id, job_keys)

    async def of_batch(self, batch_id: str) -> AsyncStore:
        """Return the store of a batch; any store if the batch does not exist."""
        return await self._store_of(batch_id, batch_keys)

    async def of_file(self, file_id: str) -> AsyncStore:
        """Return the store of an upload; any store if it does not exist."""
        return await self._store_of(file_id, file_keys)

    def shard_of(self, store: AsyncStore) -> Shard:
        """Return the shard of one of these stores."""
        return self.list.shards[self._stores.index(store)]

    async def of_jobs(self, job_ids: Sequence[str]) -> list[tuple[AsyncStore, list[str]]]:
        """Return jobs by store, each store once."""
        if self._only is not None:
            return [(self._only, list(job_ids))]
        places = await self._all_places(job_ids, job_keys)
        groups = by_place(job_ids, places).items()
        return [(await self._at(place), some) for place, some in groups]

    async def _store_of(self, some_id: str, keys_of: KeysOf) -> AsyncStore:
        if self._only is not None:
            return self._only
        return await self._at(await self._place_of(some_id, keys_of))

    async def _place_of(self, some_id: str, keys_of: KeysOf) -> int:
        return (await self._all_places([some_id], keys_of))[some_id]

    async def _all_places(self, ids: Sequence[str], keys_of: KeysOf) -> dict[str, int]:
        """Return the places of all ids, as `_known_places`.

        Raises:
            ShardsFailed: one may be in a shard that failed.
        """
        failures = ShardFailures()
        places = await self._known_places(ids, keys_of, failures)
        if any(some_id not in places for some_id in ids):
            failures.check()
        return places

    async def _known_places(
        self, ids: Sequence[str], keys_of: KeysOf, failures: ShardFailures
    ) -> dict[str, int]:
        """Return the places of jobs or batches; those whose id names no shard are looked up.

        An id that no shard has gets any place; if a shard failed that may have it, it gets none.

        Args:
            ids: of jobs or batches.
            keys_of: of what has these ids.
            failures: takes the errors of shards.
        """
        places: dict[str, int] = {}
        unnamed = []
        for some_id in ids:
            name = shard_name_of(some_id)
            if name is None:
                unnamed.append(some_id)
            elif name in self._places:
                places[some_id] = self._places[name]
            else:
                raise unknown_shard_error(name, some_id, self.list)
        for place, shard in enumerate(self.list.shards):
            if not unnamed:
                break
            with failures.of(shard.name):
                store = await self._at(place)
                known = await store.read(exist(unnamed, keys_of))
                both = zip(unnamed, known, strict=True)
                places |= {some_id: place for some_id, is_here in both if is_here}
            unnamed = [some_id for some_id in unnamed if some_id not in places]
        if not failures.names:
            places |= dict.fromkeys(unnamed, 0)
        return places

    async def _at(self, place: int, *, for_work: bool = False) -> AsyncStore:
        await self._check(place, for_work=for_work)
        return self._stores[place]

    async def _check(self, place: int, *, for_work: bool = False) -> None:
        """Check a shard's mark: once, and before new work again after a while."""
        if self._only is not None:
            return
        await self._compare()
        now = time.monotonic()
        before = self._checked_at.get(place)
        if before is not None and (not for_work or now - before < _CHECK_S):
            return
        shard, store = self.list.shards[place], self._stores[place]
        self._marks[place] = await check_shard(store, shard, self.list)
        self._checked_at[place] = now

    async def _compare(self) -> None:
        """Once, check the marks of all shards that reply, before any is noted.

        A shard without a mark would take this list as its own, though the others have another one.
        """
        if self._has_compared:
            return
        for place, (shard, store) in enumerate(zip(self.list.shards, self._stores, strict=True)):
            self._doubts.note(shard.name, has_failed=True)
            with contextlib.suppress(RedisError), time_limit(COMPARE_LIMIT_S):
                mark = await store.read(read_mark())
                self._doubts.note(shard.name, has_failed=False)
                if mark is not None:
                    self._marks[place] = check_mark(mark, shard, self.list)
                    self._checked_at[place] = time.monotonic()
        self._has_compared = True


async def check_shard(store: AsyncStore, shard: Shard, shard_list: ShardList) -> ShardMark:
    """Check that a broker is the shard that a list means, and note it in a broker without a mark.

    Returns:
        Its mark.

    Raises:
        ShardMismatch: it is another shard, or belongs to another list.
    """
    mark = await store.read(read_mark())
    if mark is None:
        mark = await store.read(note_mark(shard, shard_list))
    return check_mark(mark, shard, shard_list)


def by_place(job_ids: Sequence[str], places: Mapping[str, int]) -> dict[int, list[str]]:
    """Return jobs by their place; those without one are left out."""
    found: dict[int, list[str]] = {}
    for job_id in job_ids:
        if job_id in places:
            found.setdefault(places[job_id], []).append(job_id)
    return found
