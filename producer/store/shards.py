# Generated from async_shards.py by tests/structure/generate_sync.py: change that file.
"""`Shards`: the stores of all shards, and which of them a job or a batch is in.

With one URL there is one store, and every method here returns it without asking anything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Self, TypeVar

from redis.exceptions import RedisError

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import reads
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Call, Read
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import SubmitReply
from batchmill.producer.shard_list import Shard, ShardList, read_shard_list, shard_name_of

from .call_limits import time_limit
from .existence import KeysOf, batch_keys, exist, file_keys, job_keys
from .replication import NotConfirmed, ReplicaWait
from .shard_errors import ShardFailures
from .shard_mark import check_mark, note_mark, read_mark, unknown_shard_error
from .store import Store

Value = TypeVar("Value")
#: Seconds for which a check of a shard's mark is enough for new work.
_CHECK_S: Final = 10.0
#: Longest wait for each shard at the first call: one that is away stops only its own jobs.
_COMPARE_LIMIT_S: Final = 2.0


class Shards:
    """Owns a store per shard. Every method may raise `redis.exceptions.RedisError`.

    Those that return stores also raise `ShardMismatch`, if a shard belongs to another list.
    """

    def __init__(self, shard_list: ShardList, stores: Sequence[Store]) -> None:
        """Take a store for each shard of the list, in its order."""
        self.list = shard_list
        self._stores = list(stores)
        self._only = self._stores[0] if shard_list.only is not None else None
        self._places = {shard.name: place for place, shard in enumerate(shard_list.shards)}
        self._checked_at: dict[int, float] = {}
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
            Store.from_url(
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
    def first(self) -> Store:
        """The store of the first shard; with one URL, of the broker."""
        return self._stores[0]

    def close(self) -> None:
        """Close the connections to all shards."""
        for store in self._stores:
            store.close()

    def every(self) -> Sequence[Store]:
        """Return the stores of all shards, in the order of the list."""
        for place in range(len(self._stores)):
            self._check(place)
        return self._stores

    def at(self, shard: Shard) -> Store:
        """Return the store of a shard of the list."""
        return self._at(self._places[shard.name])

    def of_work(self, model: str, tenant: str) -> Store:
        """Return the store that takes new jobs of a tenant for a model."""
        if self._only is not None:
            return self._only
        return self._at(self._places[self.list.of_work(model, tenant).name], for_work=True)

    def of_job(self, job_id: str) -> Store:
        """Return the store of a job; any store if the job does not exist."""
        if self._only is not None:
            return self._only
        return self._at(self._place_of(job_id, job_keys))

    def of_batch(self, batch_id: str) -> Store:
        """Return the store of a batch; any store if the batch does not exist."""
        if self._only is not None:
            return self._only
        return self._at(self._place_of(batch_id, batch_keys))

    def of_file(self, file_id: str) -> Store:
        """Return the store of an upload; any store if it does not exist."""
        if self._only is not None:
            return self._only
        return self._at(self._place_of(file_id, file_keys))

    def shard_of(self, store: Store) -> Shard:
        """Return the shard of one of these stores."""
        return self.list.shards[self._stores.index(store)]

    def of_jobs(self, job_ids: Sequence[str]) -> list[tuple[Store, list[str]]]:
        """Return jobs by store, each store once."""
        if self._only is not None:
            return [(self._only, list(job_ids))]
        by_place = _by_place(job_ids, self._all_places(job_ids, job_keys))
        return [(self._at(place), some) for place, some in by_place.items()]

    def read_each(
        self, job_ids: Sequence[str], make: Callable[[Sequence[str]], Read[list[Value]]]
    ) -> list[Value]:
        """Read a value for each job, in order, with one round trip per shard."""
        if self._only is not None:
            return self._only.read(make(job_ids))
        found: dict[str, Value] = {}
        for store, some in self.of_jobs(job_ids):
            found |= zip(some, store.read(make(some)), strict=True)
        return [found[job_id] for job_id in job_ids]

    def run_each(
        self,
        job_ids: Sequence[str],
        make: Callable[[str], Call[Value]],
        *,
        confirmed: bool = False,
    ) -> list[Value]:
        """Run a call for each job, in order; `confirmed` as of `Store.run_all_confirmed`.

        Raises:
            ShardsFailed: some shards failed; the calls of all others were made.
        """
        if self._only is not None:
            run = self._only.run_all_confirmed if confirmed else self._only.run_all
            return run([make(job_id) for job_id in job_ids])
        found: dict[str, Value] = {}
        failures = ShardFailures()
        places = self._known_places(job_ids, job_keys, failures)
        for place, some in _by_place(job_ids, places).items():
            with failures.of(self.list.shards[place].name):
                store = self._at(place)
                run = store.run_all_confirmed if confirmed else store.run_all
                found |= zip(some, run([make(job_id) for job_id in some]), strict=True)
        failures.check()
        return [found[job_id] for job_id in job_ids]

    def run_everywhere(self, call: Call[Value]) -> list[Value]:
        """Run a call in every shard; errors as of `do_everywhere`."""
        return self.do_everywhere(lambda store: store.run(call))

    def do_everywhere(self, work: Callable[[Store], Value]) -> list[Value]:
        """Do something in every shard, one after another.

        Raises:
            ShardsFailed: some shards failed; it was done in all others.
        """
        found = []
        failures = ShardFailures()
        for shard in self.list.shards:
            with failures.of(shard.name):
                found.append(work(self.at(shard)))
        failures.check()
        return found

    def place(self, job: NewJob) -> tuple[Store, NewJob]:
        """Return the store for a new job, and the job under an id that leads there."""
        if self._only is not None:
            return self._only, job
        ((place, tagged),) = self._placed([job])
        return self._at(place, for_work=True), tagged

    def submit(self, jobs: Sequence[NewJob]) -> list[SubmitReply]:
        """Submit jobs, each to its shard, and return the replies in order.

        Raises:
            NotConfirmed: too few replicas have them. All shards were tried.
        """
        if self._only is not None:
            return self._only.run_all_confirmed([job_calls.submit(job) for job in jobs])
        by_place: dict[int, list[tuple[int, NewJob]]] = {}
        for number, (place, job) in enumerate(self._placed(jobs)):
            by_place.setdefault(place, []).append((number, job))
        replies: dict[int, SubmitReply] = {}
        unconfirmed: NotConfirmed | None = None
        for place, some in by_place.items():
            store = self._at(place, for_work=True)
            try:
                own = store.run_all_confirmed([job_calls.submit(job) for _, job in some])
            except NotConfirmed as error:
                unconfirmed, own = error, list(error.values)
            replies |= zip((number for number, _ in some), own, strict=True)
        in_order = [replies[number] for number in range(len(jobs))]
        if unconfirmed is not None:
            unconfirmed.values = in_order
            raise unconfirmed
        return in_order

    def job_ids_of_keys(self, places: Sequence[tuple[str, str]]) -> list[str | None]:
        """Return the jobs that stand for idempotency keys, given with their tenants."""
        found: list[str | None] = [None] * len(places)
        for store in self.every():
            ids = store.read(reads.idempotent_jobs(places))
            found = [before or job_id for before, job_id in zip(found, ids, strict=True)]
        return found

    def new_batch_id(self, batch_id: str, model: str, tenant: str, *, is_keyed: bool) -> str:
        """Return the id under which a batch is opened: where it is already, else where it belongs.

        Args:
            batch_id: made of its idempotency key, or a new one; without a shard.
            model: the default model of its jobs.
            tenant: whose it is.
            is_keyed: whether the id is made of a key, so that the batch may exist.
        """
        if self._only is not None:
            return batch_id
        failures = ShardFailures()
        for place, shard in enumerate(self.list.shards if is_keyed else ()):
            names = [shard.tagged(batch_id), batch_id]
            with failures.of(shard.name):
                store = self._at(place)
                known = store.read(exist(names, batch_keys))
                for name, is_known in zip(names, known, strict=True):
                    if is_known:
                        return name
        failures.check()  # the batch may be in a shard that is away
        return self.list.of_work(model, tenant).tagged(batch_id)

    def _placed(self, jobs: Sequence[NewJob]) -> list[tuple[int, NewJob]]:
        known = self._places_of_keys(jobs)
        placed = []
        for number, job in enumerate(jobs):
            if job.batch is not None:
                place = self._place_of(job.batch.batch_id, batch_keys)
            elif number in known:
                place = known[number]
            else:
                place = self._places[self.list.of_work(job.model, job.tenant).name]
            job_id = self.list.shards[place].tagged(job.job_id)
            placed.append((place, replace(job, job_id=job_id)))
        return placed

    def _places_of_keys(self, jobs: Sequence[NewJob]) -> dict[int, int]:
        """Return where the idempotency keys of jobs are in use, by the number of the job.

        A key may be in use where new jobs of its model and tenant no longer go.
        """
        keyed = [
            (number, (job.tenant, job.idempotency_key))
            for number, job in enumerate(jobs)
            if job.idempotency_key is not None and job.batch is None
        ]
        known: dict[int, int] = {}
        failures = ShardFailures()
        for place, shard in enumerate(self.list.shards if keyed else ()):
            with failures.of(shard.name):
                store = self._at(place)
                ids = store.read(reads.idempotent_jobs([name for _, name in keyed]))
                for (number, _), job_id in zip(keyed, ids, strict=True):
                    if job_id is not None:
                        known.setdefault(number, place)
        if len(known) < len(keyed):
            failures.check()  # a key may be in use in a shard that is away
        return known

    def _place_of(self, some_id: str, keys_of: KeysOf) -> int:
        return (self._all_places([some_id], keys_of))[some_id]

    def _all_places(self, ids: Sequence[str], keys_of: KeysOf) -> dict[str, int]:
        """Return the places of all ids, as `_known_places`.

        Raises:
            ShardsFailed: one may be in a shard that failed.
        """
        failures = ShardFailures()
        places = self._known_places(ids, keys_of, failures)
        if any(some_id not in places for some_id in ids):
            failures.check()
        return places

    def _known_places(
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
                store = self._at(place)
                known = store.read(exist(unnamed, keys_of))
                both = zip(unnamed, known, strict=True)
                places |= {some_id: place for some_id, is_here in both if is_here}
            unnamed = [some_id for some_id in unnamed if some_id not in places]
        if not failures.names:
            places |= dict.fromkeys(unnamed, 0)
        return places

    def _at(self, place: int, *, for_work: bool = False) -> Store:
        self._check(place, for_work=for_work)
        return self._stores[place]

    def _check(self, place: int, *, for_work: bool = False) -> None:
        """Check a shard's mark: once, and before new work again after a while."""
        if self._only is not None:
            return
        now = time.monotonic()
        before = self._checked_at.get(place)
        if before is not None and (not for_work or now - before < _CHECK_S):
            return
        if not self._has_compared:
            self._compare()
            self._has_compared = True
        check_shard(self._stores[place], self.list.shards[place], self.list)
        self._checked_at[place] = now

    def _compare(self) -> None:
        """Check the marks of all shards that reply, before any is noted.

        A shard without a mark would take this list as its own, though the others have another one.
        """
        for shard, store in zip(self.list.shards, self._stores, strict=True):
            with contextlib.suppress(RedisError), time_limit(_COMPARE_LIMIT_S):
                mark = store.read(read_mark())
                if mark is not None:
                    check_mark(mark, shard, self.list)


def check_shard(store: Store, shard: Shard, shard_list: ShardList) -> None:
    """Check that a broker is the shard that a list means, and note it in a broker without a mark.

    Raises:
        ShardMismatch: it is another shard, or belongs to another list.
    """
    mark = store.read(read_mark())
    if mark is None:
        mark = store.read(note_mark(shard, shard_list))
    check_mark(mark, shard, shard_list)


def _by_place(job_ids: Sequence[str], places: Mapping[str, int]) -> dict[int, list[str]]:
    """Return jobs by their place; those without one are left out."""
    found: dict[int, list[str]] = {}
    for job_id in job_ids:
        if job_id in places:
            found.setdefault(places[job_id], []).append(job_id)
    return found
