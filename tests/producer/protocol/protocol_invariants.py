"""Invariants of the store that hold after every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant
from redis import Redis

from batchmill.producer.protocol import keys
from batchmill.producer.store import job_index
from batchmill.producer.store.batches import batches
from batchmill.producer.store.job_index import JobQuery
from batchmill.producer.store.job_store import JobStore

from .protocol_reference import BatchReference, Reference

QUEUE = keys.queue_name("demo", "normal")
#: Small, so that most jobs have to wait for their announcement.
WINDOW_JOBS = 2
BATCH_ID = "batch_1"


class ProtocolInvariants(RuleBasedStateMachine):
    """Owns a store and its reference, and compares them after every step."""

    def __init__(self, url: str, check_keys: Callable[[Redis], None]) -> None:
        super().__init__()
        self.store = JobStore.from_url(url)
        self.redis: Any = self.store.client
        self.redis.flushall()
        self.check_keys = check_keys
        self.jobs: dict[str, Reference] = {}
        self.delivered: set[str] = set()
        self.forgotten: set[str] = set()
        self.batch = BatchReference()

    def teardown(self) -> None:
        self.store.close()

    @invariant()
    def every_record_equals_its_reference(self) -> None:
        for job_id, job in self.jobs.items():
            record = self.store.load(job_id)
            assert record is not None
            assert record.state.value == job.state
            assert (record.fence, record.attempts) == (job.fence, job.fence)
            assert (record.suspect, record.crashes) == (job.suspect, job.crashes)
            assert (record.alone, record.restarts) == (job.alone, job.restarts)
            assert record.cancel_requested == job.cancel_requested
            assert record.run == job.run
            assert (record.result is None) or job.has_ended
            assert self.store.read_tokens(job_id) == job.tokens

    @invariant()
    def the_batch_counts_what_a_recount_counts(self) -> None:
        self.batch.observe(self.jobs)
        batch = self.store.read(batches([BATCH_ID]))[0]
        assert batch is not None
        numbers = batch.request_counts
        assert (numbers.total, numbers.completed, numbers.failed) == self.batch.counts
        waiting = "validating" if self.batch.is_open else "in_progress"
        waiting = "cancelling" if self.batch.is_cancelled else waiting
        assert batch.status == (self.batch.end or waiting)

    @invariant()
    def each_end_of_a_job_with_a_webhook_has_one_event(self) -> None:
        self.batch.observe(self.jobs)
        of_batch = {f"evt_{BATCH_ID}_{self.batch.end}"} if self.batch.end else set()
        events = {name.decode() for name in self.redis.scan_iter(match=keys.event("*"))}
        assert events == {
            keys.event(f"evt_{job_id}_{end}")
            for job_id, job in self.jobs.items()
            for end in job.ends
            if job.webhook
        } | {keys.event(event_id) for event_id in of_batch}
        waiting = {event_id.decode() for event_id in self.redis.zrange(keys.OUTBOX, 0, -1)}
        of_jobs = {
            f"evt_{job_id}_{job.ends[-1]}"
            for job_id, job in self.jobs.items()
            if job.webhook and job.has_ended
        }
        assert waiting == (of_jobs | of_batch) - self.delivered

    @invariant()
    def jobs_are_listed_in_their_states(self) -> None:
        for tag in (None, "x", "xy"):
            page = self.store.run(job_index.list_jobs(JobQuery(tag), 1000))
            assert {status.id: status.state for status in page.jobs} == {
                job_id: job.state for job_id, job in self.jobs.items() if tag in (None, job.tag)
            }

    @invariant()
    def the_window_is_full_while_jobs_wait(self) -> None:
        if self.redis.exists(keys.turns(QUEUE)):
            assert self.redis.llen(keys.announced(QUEUE)) >= WINDOW_JOBS

    @invariant()
    def every_key_ends(self) -> None:
        self.check_keys(self.redis)
