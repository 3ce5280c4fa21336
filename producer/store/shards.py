# Generated from async_shards.py by tests/structure/generate_sync.py: change that file.
"""`Shards`: the stores of all shards, what is done in many of them, and where new work goes.

With one URL there is one store, and every method here returns it without asking anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from batchmill.producer.errors import PayloadUnreachable
from batchmill.producer.protocol import reads
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Call, Read
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import SubmitReply, submitted_ids

from .call_limits import time_limit
from .existence import batch_keys, exist, job_keys
from .replication import NotConfirmed
from .shard_doubts import COMPARE_LIMIT_S
from .shard_errors import ShardFailures
from .shard_mark import Work, homes_of
from .shard_places import ShardPlaces, by_place
from .store import Store

Value = TypeVar("Value")


class Shards(ShardPlaces):
    """Does things in one, some or all shards. Every method may raise `RedisError`.

    Those that return stores also raise `ShardMismatch`, if a shard belongs to another list.
    """

    def of_work(self, model: str, tenant: str) -> Store:
        """Return the store that takes new jobs of a tenant for a model."""
        if self._only is not None:
            return self._only
        return self._at(self._places[self.list.of_work(model, tenant).name], for_work=True)

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
        for place, some in by_place(job_ids, places).items():
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
            ShardsFailed: some shards failed, or too few replicas have what they have stored. All
                shards were tried; the error names the jobs that are submitted.
            PayloadUnreachable: content could not be written; it names them as well.
        """
        if self._only is not None:
            return self._only.run_all_confirmed([job_calls.submit(job) for job in jobs])
        groups: dict[int, list[tuple[int, NewJob]]] = {}
        for number, (place, job) in enumerate(self._placed(jobs)):
            groups.setdefault(place, []).append((number, job))
        stores: dict[int, Store] = {}
        failures = ShardFailures()
        for place in groups:  # before anything is sent: a shard of another list is an error
            with failures.of(self.list.shards[place].name):
                stores[place] = self._at(place, for_work=True)
        replies: dict[int, SubmitReply] = {}
        for place, store in stores.items():
            numbers = [number for number, _ in groups[place]]
            calls = [job_calls.submit(job) for _, job in groups[place]]
            with failures.of(self.list.shards[place].name):
                try:
                    own = store.run_all_confirmed(calls)
                except NotConfirmed as error:
                    replies |= zip(numbers, error.values, strict=True)
                    raise
                except PayloadUnreachable as error:
                    error.job_ids = submitted_ids(_in_order(replies))
                    raise
                replies |= zip(numbers, own, strict=True)
        failures.check(submitted_ids(_in_order(replies)))
        return _in_order(replies)

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
        home = self.list.of_work(model, tenant)
        if not is_keyed:
            return home.tagged(batch_id)
        names = [shard.tagged(batch_id) for shard in self.list.shards]
        read = exist([*names, batch_id], batch_keys)
        failures = ShardFailures()
        for place, known in (self._ask(read, [(model, tenant)], failures)).items():
            if known[place]:
                return names[place]
            if known[-1]:
                return batch_id
        self._check_homes([(model, tenant)], failures)
        return home.tagged(batch_id)

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
        keyed = {
            number: job
            for number, job in enumerate(jobs)
            if job.idempotency_key is not None and job.batch is None
        }
        if not keyed:
            return {}
        read = reads.idempotent_jobs(
            [(job.tenant, job.idempotency_key or "") for job in keyed.values()]
        )
        works = {number: (job.model, job.tenant) for number, job in keyed.items()}
        failures = ShardFailures()
        known: dict[int, int] = {}
        for place, ids in (self._ask(read, works.values(), failures)).items():
            for number, job_id in zip(keyed, ids, strict=True):
                if job_id is not None:
                    known.setdefault(number, place)
        self._check_homes([works[number] for number in keyed if number not in known], failures)
        return known

    def _ask(
        self, read: Read[Value], works: Collection[Work], failures: ShardFailures
    ) -> dict[int, Value]:
        """Ask all shards for keys, and return the replies by place.

        Those in which the keys of these models and tenants cannot be get little time.
        """
        self._compare()  # reads the marks that say where the homes are
        homes = homes_of(self._marks.values(), works)
        found: dict[int, Value] = {}
        for place, shard in enumerate(self.list.shards):
            must_reply = homes is None or shard.name in homes
            limit_s = None if must_reply else self._doubts.limit_s(shard.name, COMPARE_LIMIT_S)
            with failures.of(shard.name), time_limit(limit_s):
                found[place] = (self._at(place)).read(read)
            self._doubts.note(shard.name, has_failed=place not in found)
        return found

    def _check_homes(self, works: Collection[Work], failures: ShardFailures) -> None:
        """Check that no key may be in use in a shard that failed.

        It may be in those that a list of shards, this one or an earlier one, leads to for its model
        and tenant. A key that was given to another model as well, or to a line of a batch, may be
        elsewhere: that is a mistake of the caller, found only while its shard replies.

        Raises:
            ShardsFailed: one may be there.
        """
        homes = homes_of(self._marks.values(), works)
        if works and (homes is None or homes.intersection(failures.names)):
            failures.check()


def _in_order(replies: Mapping[int, SubmitReply]) -> list[SubmitReply]:
    return [replies[number] for number in sorted(replies)]
