"""The real scripts against a reference in plain Python, through random sequences of calls.

Calls come from right and wrong holders, repeated, late and out of order, for jobs of several
tenants, some of them delayed. After each of them every record equals the reference's, every key has
a time to live or an index entry, every waiting job is in one place, the counters equal a recount,
and the window is full while jobs wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from batchmill.producer import BatchClosed, IdempotencyConflict, ProducerSettings
from batchmill.producer.job.batch import parse_batch
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import BatchPlace, NewJob, QueueLimits
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import (
    CancelStatus,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    ForgetCounts,
    ForgetStatus,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    RetryStatus,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.store import batch_calls, job_index
from batchmill.producer.store.batch_calls import OpenBatch
from batchmill.producer.store.job_index import JobQuery

from ...support.sequences import sequences
from .protocol_invariants import BATCH_ID, QUEUE, WINDOW_JOBS
from .protocol_reference import Reference, nonce
from .spread_rules import SpreadRules, fence_errors, picks, tenants, workers

LEASE_MS = 3_600_000
MAX_OPEN_JOBS = 6

#: Where a write starts, relative to the stored end: mostly there, or before it.
position_errors = st.sampled_from((0, 0, -1, -2, 1))
tokens: st.SearchStrategy[list[int]] = st.just([]) | st.lists(
    st.integers(0, 1), min_size=1, max_size=3
)
causes = st.sampled_from(ReleaseCause)
prefixes = st.sampled_from(((), ("p0",), ("p1", "p2")))
identities = st.sampled_from(("model-1", "model-1", "model-2"))
rarely = st.sampled_from((False, False, False, True))
tags = st.sampled_from(("", "x", "xy"))
some_tags = st.sampled_from(("x", "xy"))
ends = st.sampled_from((JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED))


class ProtocolMachine(SpreadRules):
    """Drives a store and its references side by side."""

    def __init__(self, url: str, check_keys: Callable[[Redis], None]) -> None:
        super().__init__(url, check_keys)
        self.redis.set(keys.WINDOW, WINDOW_JOBS)
        self.num_submitted = 0
        fields = {"webhook": "https://example.com/batch"}
        request = parse_batch(fields)
        opened = self.store.run(batch_calls.create(request, ProducerSettings(), BATCH_ID))
        assert isinstance(opened, OpenBatch)
        for webhook, tag in ((True, "x"), (False, ""), (True, "xy")):
            self.submit(webhook, "a", False, tag)

    @rule(webhook=st.booleans(), tenant=tenants, is_delayed=rarely, tag=tags)
    def submit(self, webhook: bool, tenant: str, is_delayed: bool, tag: str) -> None:
        """Submit a new job while few are open, otherwise the newest again."""
        is_new = sum(not job.has_ended for job in self.jobs.values()) < MAX_OPEN_JOBS
        job_id = f"j{self.num_submitted}" if is_new else self.job_id(0)
        self.num_submitted += is_new
        url = "https://example.com/" if webhook else None
        delay_ms = LEASE_MS if is_delayed else None
        cost = 10 + self.num_submitted
        prefix = f"p{self.num_submitted % 3}"
        place = BatchPlace(BATCH_ID, len(self.batch.jobs)) if is_new else None
        job = NewJob(job_id, "demo", QUEUE, "{}", 60_000, url, tags=tuple(filter(None, [tag])))
        job = replace(job, tenant=tenant, cost=cost, delay_ms=delay_ms, batch=place, prefix=prefix)
        reply = self.store.submit(job)
        if is_new and not self.batch.is_open:
            assert reply.status is SubmitStatus.CLOSED
            reply = self.store.submit(replace(job, batch=None))
        elif is_new:
            self.batch.jobs.append(job_id)
        assert reply.status is (SubmitStatus.CREATED if is_new else SubmitStatus.EXISTING)
        self.jobs.setdefault(job_id, Reference(webhook, is_delayed, tag, tenant, prefix=prefix))

    @rule(num_due=st.integers(1, 3))
    def let_time_pass(self, num_due: int) -> None:
        """End the delays of a few jobs."""
        due = [i.decode() for i in self.redis.zrange(keys.SCHEDULED, 0, num_due - 1)]
        for job_id in due:
            self.redis.zadd(keys.SCHEDULED, {job_id: 1})
            self.jobs[job_id].is_scheduled = False
        assert self.store.announce_due() == len(due)

    @rule(tenant=tenants, weight=st.sampled_from((0.5, 1, 3)))
    def weigh(self, tenant: str, weight: float) -> None:
        """Change a weight while jobs wait and run."""
        self.redis.hset(keys.TENANTS, f"{tenant}:weight", weight)

    @rule(pick=picks, written=tokens, worker=workers)
    def start(self, pick: int, written: list[int], worker: str) -> None:
        """Claim and checkpoint, the usual start, so that more sequences get beyond it."""
        self.claim(pick, "model-1", worker)
        self.checkpoint(pick, "", 0, written)

    @rule(pick=picks, identity=identities, worker=workers)
    def claim(self, pick: int, identity: str, worker: str) -> None:
        """Claim without a message, as for a duplicate or late one."""
        self.claim_job(self.job_id(pick), identity, worker)

    @rule(identity=identities, worker=workers, prefixes=prefixes)
    def take_the_next(self, identity: str, worker: str, prefixes: tuple[str, ...]) -> None:
        """Take the next message and claim its job, as a worker does."""
        message = self.redis.rpop(keys.handed(self.sessions[worker]))
        message = message or self.redis.rpop(keys.announced(QUEUE))
        if message is not None:
            self.claim_job(json.loads(message)["headers"]["id"], identity, worker, prefixes)

    def claim_job(
        self, job_id: str, identity: str, worker: str, prefixes: tuple[str, ...] = ()
    ) -> None:
        job = self.jobs.get(job_id)
        number = 1 if job is None else job.fence + 1
        reply = self.store.claim(
            job_id,
            owner=worker,
            lease_ms=LEASE_MS,
            identity=identity,
            session=self.sessions[worker],
            nonce=nonce(number),
            prefixes=prefixes,
        )
        if job is None or job.state != "queued" or job.is_scheduled:
            refusal = ClaimRefusal.LEASED
            if job is None:
                refusal = ClaimRefusal.UNKNOWN
            elif job.has_ended:
                refusal = ClaimRefusal.TERMINAL
            elif job.is_scheduled:
                refusal = ClaimRefusal.SCHEDULED
            assert reply is refusal
            return
        elsewhere = set(self.sessions.values()) - {self.sessions[worker]}
        if job.home in elsewhere and job.identity != identity:
            assert reply is ClaimRefusal.OTHER_ENGINE
            return
        if reply is ClaimRefusal.PASSED_OVER:
            self.pass_over(job, self.sessions[worker], prefixes)
            return
        job.home = ""
        if job.identity not in (None, identity) and job.tokens:
            job.tokens, job.restarts = [], job.restarts + 1
        job.state, job.identity = "in_progress", identity
        job.fence, job.alone = job.fence + 1, job.suspect >= 3
        job.num_claimed, job.session = len(job.tokens), self.sessions[worker]
        assert isinstance(reply, Claim)
        assert (reply.fence, reply.attempts) == (job.written_fence(""), job.fence)
        assert (reply.token_ids, reply.alone) == (job.tokens, job.alone)
        assert reply.suspect == job.suspect

    @rule(pick=picks, wrong=fence_errors, shift=position_errors, new=tokens)
    def checkpoint(self, pick: int, wrong: str, shift: int, new: list[int]) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence, position = job.written_fence(wrong), max(0, len(job.tokens) + shift)
        [status] = self.store.checkpoint(
            [TokenWrite(job_id, fence, position, new)], lease_ms=LEASE_MS
        )
        if not job.holds(fence):
            assert status is WriteStatus.FENCED
        elif not job.append(position, new):
            assert status is WriteStatus.GAP
        else:
            asked = job.cancel_requested
            assert status is (WriteStatus.CANCEL_REQUESTED if asked else WriteStatus.OK)

    @rule(pick=picks, wrong=fence_errors, cause=causes)
    def release(self, pick: int, wrong: str, cause: ReleaseCause) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence = job.written_fence(wrong)
        [status] = self.store.release([HeldJob(job_id, fence)], cause=cause)
        expected = job.put_back(cause) if job.holds(fence) else ReleaseStatus.FENCED
        assert status is expected

    @rule(pick=picks, wrong=fence_errors, shift=position_errors, new=tokens, end=ends, again=rarely)
    def complete(
        self, pick: int, wrong: str, shift: int, new: list[int], end: JobState, again: bool
    ) -> None:
        """End an attempt; `again` asks for another one."""
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence, position = job.written_fence(wrong), max(0, len(job.tokens) + shift)
        status = self.store.complete(
            job_id,
            fence=fence,
            state=end,
            result="{}",
            position=position,
            token_ids=new,
            retry_in_ms=LEASE_MS if again else None,
        )
        if job.has_ended and job.completed_fence == fence:
            assert status is CompleteStatus.ALREADY_DONE
        elif job.state == "queued" and job.retry_fence == fence:
            assert status is CompleteStatus.RETRYING
        elif not job.holds(fence):
            assert status is CompleteStatus.FENCED
        elif not job.append(position, new):
            assert status is CompleteStatus.GAP
        elif again and not job.cancel_requested:
            assert status is CompleteStatus.RETRYING
            job.retry_later()
        else:
            assert status is CompleteStatus.OK
            job.completed_fence = fence
            job.end(end.value)

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        job_id = self.job_id(pick)
        reply = self.store.cancel(job_id)
        job = self.jobs.get(job_id)
        if job is None:
            assert reply.status is CancelStatus.UNKNOWN
        else:
            assert reply.state == (job.state if job.has_ended else None)
            assert reply.status is job.ask_to_cancel()

    @rule(tag=some_tags, tenant=st.none() | tenants)
    def cancel_where(self, tag: str, tenant: str | None) -> None:
        cursor, counts = self.store.run(job_index.cancel_where(JobQuery(tag, tenant)))
        meant = [job for job in self.jobs.values() if job.is_meant(tag, tenant)]
        outcomes = [job.ask_to_cancel() for job in meant]
        assert cursor is None
        assert (counts.cancelled, counts.cancelling, counts.already_terminal) == tuple(
            outcomes.count(status) for status in CancelStatus if status is not CancelStatus.UNKNOWN
        )

    @rule(pick=picks, is_repeated=st.booleans())
    def retry(self, pick: int, is_repeated: bool) -> None:
        """Run a job again that did not complete; a call that is sent twice does so once."""
        job_id = self.job_id(pick)
        call = job_calls.retry(job_id, QueueLimits())
        reply = self.store.run(call)
        job = self.jobs.get(job_id)
        if job is None:
            assert reply.status is RetryStatus.UNKNOWN
        elif job.state == "completed":
            assert reply.status is RetryStatus.COMPLETED
        elif not job.has_ended:
            assert (reply.status, reply.state) == (RetryStatus.ACTIVE, job.state)
        else:
            self.batch.observe(self.jobs)
            job.retry()
            self.batch.retry(job_id)
            assert (reply.status, reply.run) == (RetryStatus.RETRIED, job.run)
            if is_repeated:
                assert self.store.run(call) == reply

    @rule(pick=picks)
    def forget(self, pick: int) -> None:
        job_id = self.job_id(pick)
        reply = self.store.run(job_calls.forget(job_id))
        job = self.jobs.get(job_id)
        if job is None:
            known = job_id in self.forgotten
            assert reply.status is (ForgetStatus.FORGOTTEN if known else ForgetStatus.UNKNOWN)
        elif not job.has_ended:
            assert (reply.status, reply.state) == (ForgetStatus.ACTIVE, job.state)
        else:
            assert reply.status is ForgetStatus.FORGOTTEN
            del self.jobs[job_id]
            self.forgotten.add(job_id)
            left = set(self.redis.scan_iter(match=f"*{job_id}*"))
            left -= {keys.forgotten(other).encode() for other in self.forgotten}
            assert not [
                name for name in left if re.search(rb"\b_?" + job_id.encode() + rb"\b", name)
            ]

    @rule(tag=some_tags)
    def forget_where(self, tag: str) -> None:
        _, counts = self.store.run(job_index.forget_where(JobQuery(tag)))
        meant = {i: job for i, job in self.jobs.items() if job.is_meant(tag, None)}
        forgotten = [job_id for job_id, job in meant.items() if job.has_ended]
        assert counts == ForgetCounts(len(forgotten), len(meant) - len(forgotten))
        for job_id in forgotten:
            del self.jobs[job_id]

    @rule(num_refused=st.integers(0, 1), is_repeated=st.booleans())
    @precondition(lambda self: len(self.jobs) > 3)
    def seal_the_batch(self, num_refused: int, is_repeated: bool) -> None:
        num_lines = len(self.batch.jobs) + num_refused
        was_open, known = self.batch.is_open, len(self.batch.jobs) + self.batch.num_refused
        if was_open:
            self.batch.is_open, self.batch.num_refused = False, num_refused
        for _ in range(1 + is_repeated):
            refusal = self.store.run(batch_calls.seal(BATCH_ID, num_lines))
            if self.batch.is_cancelled:
                assert isinstance(refusal, BatchClosed)
            elif was_open or num_lines == known:
                assert refusal is None
            else:
                assert isinstance(refusal, IdempotencyConflict)

    @rule(is_repeated=st.booleans())
    @precondition(lambda self: len(self.jobs) > 5)
    def cancel_the_batch(self, is_repeated: bool) -> None:
        self.batch.observe(self.jobs)
        is_first = not self.batch.end and not self.batch.is_cancelled
        for _ in range(1 + is_repeated):
            self.store.run(batch_calls.cancel(BATCH_ID))
        self.store.sweep()
        if is_first:  # the sweep does not visit a job again that is retried meanwhile
            self.batch.is_open, self.batch.is_cancelled = False, True
            for job_id in self.batch.jobs:
                if job_id in self.jobs:
                    self.jobs[job_id].ask_to_cancel()

    @rule(pick=picks)
    def lose_the_lease(self, pick: int) -> None:
        job_id = self.job_id(pick)
        self.redis.zadd(keys.LEASES, {job_id: 1}, xx=True)
        counts = self.store.sweep()
        outcome = None
        job = self.jobs.get(job_id)
        if job is not None and job.state == "in_progress":
            outcome = job.lose_lease()
        assert counts.requeued == (outcome is ReleaseStatus.REQUEUED)
        assert counts.cancelled == (outcome is ReleaseStatus.CANCELLED)
        assert counts.dead == (outcome is ReleaseStatus.DEAD)

    @rule(num_lost=st.integers(0, 3))
    def lose_announcements(self, num_lost: int) -> None:
        for _ in range(num_lost):
            self.redis.rpop(keys.announced(QUEUE))
        # A grace of -1 ms includes announcements of the current millisecond.
        missing = self.num_announced() - self.redis.llen(keys.announced(QUEUE))
        assert self.store.sweep(reannounce_grace_ms=-1).reannounced == max(0, missing)
        assert self.store.sweep(reannounce_grace_ms=-1).reannounced == 0

    def num_announced(self) -> int:
        return int(self.redis.zcount(keys.queued(QUEUE), "-inf", "(+inf"))

    @rule(is_late=st.booleans())
    def deliver(self, is_late: bool) -> None:
        lease_ms = 0 if is_late else LEASE_MS
        for entry in self.store.outbox_claim(owner="d", limit=9, lease_ms=lease_ms):
            assert entry.event_id not in self.delivered
            if is_late:  # another deliverer claims it meanwhile
                self.store.outbox_claim(owner="e", limit=9, lease_ms=0)
            status = self.store.outbox_settle(
                entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
            )
            assert status is (WriteStatus.FENCED if is_late else WriteStatus.OK)
            if not is_late:
                self.delivered.add(entry.event_id)


def test_the_scripts_agree_with_the_reference(
    redis_url: str, check_keys: Callable[[Redis], None]
) -> None:
    machine: Any = partial(ProtocolMachine, redis_url, check_keys)
    run_state_machine_as_test(machine, settings=sequences(25))
