"""Rules of the protocol's state machine on jobs that move from one worker to another."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from hypothesis.stateful import rule

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import spread as calls
from batchmill.producer.protocol.calls.spread import Origin, Want
from batchmill.producer.protocol.replies import HeldJob, ReleaseCause, ReleaseStatus

from .protocol_invariants import QUEUE
from .protocol_reference import Reference
from .session_rules import WORKERS, SessionRules

#: As in `prefixes.lua`.
MAX_PASSED_OVER = 4
#: Which job, counted from the newest; the last value is an unknown job.
picks = st.sampled_from((0, 0, 0, 1, 1, 2, 9))
#: How a fence is wrong, mostly not at all. Redis may give the number of a claim out again if it
#: loses its last writes: `other claim` has the right number and another nonce.
fence_errors = st.sampled_from(("", "", "", "earlier claim", "later claim", "other claim"))
workers = st.sampled_from(WORKERS)
tenants = st.sampled_from(("a", "a", "b", "c"))


class SpreadRules(SessionRules):
    """Lets workers ask for jobs, hand some over, and give way after a time slice."""

    def job_id(self, pick: int) -> str:
        """Return the id of the job that a rule uses."""
        return list(self.jobs)[-1 - pick] if pick < len(self.jobs) else "unknown"

    @rule(pick=picks, wrong=fence_errors, taker=workers)
    def hand_over(self, pick: int, wrong: str, taker: str) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence = job.written_fence(wrong)
        handed = keys.handed(self.sessions[taker])
        num_handed = self.redis.llen(handed)
        [status] = self.store.run(
            job_calls.hand_over([HeldJob(job_id, fence)], self.sessions[taker])
        )
        holds = job.holds(fence)
        assert status is (job.put_back(ReleaseCause.MOVED) if holds else ReleaseStatus.FENCED)
        is_moved = status is ReleaseStatus.REQUEUED
        assert self.redis.llen(handed) == num_handed + is_moved

    @rule(pick=picks, wrong=fence_errors)
    def end_the_slice(self, pick: int, wrong: str) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence = job.written_fence(wrong)
        [status] = self.store.release([HeldJob(job_id, fence)], cause=ReleaseCause.SLICED)
        holds = job.holds(fence)
        assert status is (job.put_back(ReleaseCause.SLICED) if holds else ReleaseStatus.FENCED)

    def pass_over(self, job: Reference, session: str, prefixes: tuple[str, ...]) -> None:
        """Another job of the tenant, which fits the worker, waits in its list instead."""
        assert job.prefix not in prefixes
        job.num_passed_over += 1
        assert job.num_passed_over <= MAX_PASSED_OVER
        message = self.redis.lindex(keys.handed(session), -1)
        other = self.jobs[json.loads(message)["headers"]["id"]]
        assert (other.state, other.tenant) == ("queued", job.tenant)
        assert other.prefix in prefixes or other.home == session

    @rule(asker=workers, giver=workers, tenant=tenants)
    def ask_for_jobs(self, asker: str, giver: str, tenant: str) -> None:
        """A worker that has nothing to take asks, and another one finds its wish, once."""
        session = self.sessions[asker]
        waits = self.redis.exists(keys.handed(session), keys.announced(QUEUE), keys.turns(QUEUE))
        asked = self.store.run(
            calls.want(
                Want(session, 8, 0), model="demo", identity="m", queues=[QUEUE], ttl_ms=60_000
            )
        )
        assert asked is not bool(waits)
        find = calls.take_want(
            Want(self.sessions[giver], 0, 8),
            model="demo",
            identity="m",
            origins=[Origin(QUEUE, tenant)],
        )
        found = [self.store.run(find) for _ in range(3)]
        wishes = [each[0].session for each in found if each is not None]
        assert wishes.count(session) == (asked and giver != asker)
        assert self.sessions[giver] not in wishes

    @rule(worker=workers)
    def stop_asking(self, worker: str) -> None:
        """What was handed to a worker is announced to all."""
        session = self.sessions[worker]
        assert not self.store.run(
            calls.want(Want(session, 0, 0), model="demo", identity="", queues=[QUEUE], ttl_ms=1)
        )
        assert not self.redis.exists(keys.handed(session))
        assert not self.redis.hexists(keys.wants("demo"), session)
