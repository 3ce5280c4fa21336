"""The real scripts against a reference in plain Python, through random sequences of calls.

Calls come from right and wrong holders, repeated, late and out of order, for jobs of several
tenants, some of them delayed. After each of them every record equals the reference's, every key has
a time to live or an index entry, every waiting job stands in one place, the counters equal a
recount, and no place among the announced is left empty while jobs wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from batchmill.producer import (
    BatchClosed,
    IdempotencyConflict,
    ProducerSettings,
    batch_calls,
    calls,
    job_index,
    keys,
)
from batchmill.producer.answers import (
    CancelStatus,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    DeliveryOutcome,
    ForgetCounts,
    ForgetStatus,
    Held,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    RetryStatus,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.batch_calls import OpenBatch
from batchmill.producer.batch_models import parse_batch
from batchmill.producer.batch_store import BatchStore
from batchmill.producer.calls import BatchPlace, NewJob, QueueLimits
from batchmill.producer.job_index import JobQuery
from batchmill.producer.store import JobStore

QUEUE = keys.queue_name("demo", "normal")
LEASE_MS = 3_600_000
#: Small, so that most jobs have to wait for their announcement.
WINDOW_JOBS = 2
MAX_OPEN_JOBS = 6

#: Which job, counted from the newest; the last one is not there.
picks = st.sampled_from((0, 0, 0, 1, 1, 2, 9))
#: Added to the right fence: mostly none.
fence_errors = st.sampled_from((0, 0, 0, -1, 1))
#: Where a write starts, relative to what is stored: mostly at its end, or repeated.
position_errors = st.sampled_from((0, 0, -1, -2, 1))
tokens = st.just([]) | st.lists(st.integers(0, 1), min_size=1, max_size=3)
causes = st.sampled_from(ReleaseCause)
identities = st.sampled_from(("model-1", "model-1", "model-2"))
tenants = st.sampled_from(("a", "a", "b", "c"))
rarely = st.sampled_from((False, False, False, True))
tags = st.sampled_from(("", "x", "xy"))
some_tags = st.sampled_from(("x", "xy"))
ends = st.sampled_from((JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED))


BATCH_ID = "batch_1"


@dataclass
class BatchReference:
    """What the batch should be; its counts are those of a recount of its jobs."""

    jobs: list[str] = field(default_factory=list)
    is_open: bool = True
    num_refused: int = 0
    is_cancelled: bool = False
    #: How its jobs ended the first time, or after a retry that came in time.
    counted: dict[str, str] = field(default_factory=dict)
    #: How it ended.
    end: str | None = None

    def observe(self, jobs: dict[str, Reference]) -> None:
        """Note what has ended since the last look."""
        for job_id in self.jobs:
            if job_id in jobs and jobs[job_id].has_ended:
                self.counted.setdefault(job_id, jobs[job_id].state)
        if not self.end and not self.is_open and len(self.counted) == len(self.jobs):
            self.end = "cancelled" if self.is_cancelled else "completed"

    def retry(self, job_id: str) -> None:
        """A job runs again: the batch waits for it, unless it has ended or is being cancelled."""
        if not self.end and not self.is_cancelled:
            self.counted.pop(job_id, None)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Lines, completed and failed."""
        num_completed = list(self.counted.values()).count("completed")
        num_failed = len(self.counted) - num_completed + self.num_refused
        return len(self.jobs) + self.num_refused, num_completed, num_failed


@dataclass
class Reference:
    """What a record should be."""

    webhook: bool
    is_scheduled: bool = False
    tag: str = ""
    tenant: str = "a"
    run: int = 1
    #: Ends that it has come to, by the names of their events.
    ends: list[str] = field(default_factory=list)
    state: str = "queued"
    fence: int = 0
    suspect: int = 0
    crashes: int = 0
    alone: bool = False
    restarts: int = 0
    identity: str | None = None
    cancel_requested: bool = False
    completed_fence: int | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.state not in ("queued", "in_progress")

    def end(self, state: str) -> None:
        self.state = state
        self.ends.append(state if self.run == 1 else f"{state}_run{self.run}")

    def ask_to_cancel(self) -> CancelStatus:
        if self.has_ended:
            return CancelStatus.ALREADY_TERMINAL
        if self.state == "queued":
            self.end("cancelled")
            return CancelStatus.CANCELLED
        self.cancel_requested = True
        return CancelStatus.CANCELLING

    def retry(self) -> None:
        self.state, self.run, self.is_scheduled = "queued", self.run + 1, False
        self.suspect = self.crashes = 0
        self.alone = self.cancel_requested = False
        self.completed_fence = None

    def holds(self, fence: int) -> bool:
        return self.state == "in_progress" and self.fence == fence

    def append(self, position: int, new: list[int]) -> bool:
        """Append what is new of a write; False where it does not fit what is stored."""
        if position > len(self.tokens):
            return False
        overlap = self.tokens[position : position + len(new)]
        if overlap != new[: len(overlap)]:
            return False
        self.tokens += new[len(overlap) :]
        return True

    def is_meant(self, tag: str, tenant: str | None) -> bool:
        return self.tag == tag and tenant in (None, self.tenant)

    def put_back(self, cause: ReleaseCause) -> ReleaseStatus:
        if cause is ReleaseCause.ENGINE_DEATH and self.alone:
            self.crashes += 1
        elif cause is ReleaseCause.ENGINE_DEATH:
            self.suspect += 1
        if self.cancel_requested:
            self.end("cancelled")
            return ReleaseStatus.CANCELLED
        if self.crashes >= 3:
            self.end("failed")
            return ReleaseStatus.DEAD
        self.state = "queued"
        return ReleaseStatus.REQUEUED


class ProtocolMachine(RuleBasedStateMachine):
    """Drives a store and the references side by side."""

    def __init__(self, url: str, check_keys: Callable[[Redis], None]) -> None:
        super().__init__()
        self.store = JobStore.from_url(url)
        self.redis: Any = self.store.client
        self.redis.flushall()
        self.redis.set(keys.WINDOW, WINDOW_JOBS)
        self.check_keys = check_keys
        self.jobs: dict[str, Reference] = {}
        self.num_submitted = 0
        self.delivered: set[str] = set()
        self.forgotten: set[str] = set()
        self.batch = BatchReference()
        fields = {"webhook": "https://example.com/batch"}
        request = parse_batch(fields)
        opened = self.store.run(batch_calls.create(request, ProducerSettings(), BATCH_ID))
        assert isinstance(opened, OpenBatch)
        for webhook, tag in ((True, "x"), (False, ""), (True, "xy")):
            self.submit(webhook, "a", False, tag)

    def teardown(self) -> None:
        self.store.close()

    def job_id(self, pick: int) -> str:
        """The job that a rule is about."""
        return list(self.jobs)[-1 - pick] if pick < len(self.jobs) else "nobody"

    @rule(webhook=st.booleans(), tenant=tenants, is_delayed=rarely, tag=tags)
    def submit(self, webhook: bool, tenant: str, is_delayed: bool, tag: str) -> None:
        """A new job while few are open; else the newest once more."""
        is_new = sum(not job.has_ended for job in self.jobs.values()) < MAX_OPEN_JOBS
        job_id = f"j{self.num_submitted}" if is_new else self.job_id(0)
        self.num_submitted += is_new
        url = "https://example.com/" if webhook else None
        delay_ms = LEASE_MS if is_delayed else None
        cost = 10 + self.num_submitted
        place = BatchPlace(BATCH_ID, len(self.batch.jobs)) if is_new else None
        job = NewJob(job_id, "demo", QUEUE, "{}", 60_000, url, tags=tuple(filter(None, [tag])))
        job = replace(job, tenant=tenant, cost=cost, delay_ms=delay_ms, batch=place)
        answer = self.store.submit(job)
        if is_new and not self.batch.is_open:
            assert answer.status is SubmitStatus.CLOSED
            answer = self.store.submit(replace(job, batch=None))
        elif is_new:
            self.batch.jobs.append(job_id)
        assert answer.status is (SubmitStatus.CREATED if is_new else SubmitStatus.EXISTING)
        self.jobs.setdefault(job_id, Reference(webhook, is_delayed, tag, tenant))

    @rule(num_due=st.integers(1, 3))
    def let_time_pass(self, num_due: int) -> None:
        """The delays of a few jobs end."""
        due = [i.decode() for i in self.redis.zrange(keys.SCHEDULED, 0, num_due - 1)]
        for job_id in due:
            self.redis.zadd(keys.SCHEDULED, {job_id: 1})
            self.jobs[job_id].is_scheduled = False
        assert self.store.announce_due() == len(due)

    @rule(tenant=tenants, weight=st.sampled_from((0.5, 1, 3)))
    def weigh(self, tenant: str, weight: float) -> None:
        """The operator changes a weight while jobs wait and run."""
        self.redis.hset(keys.TENANTS, f"{tenant}:weight", weight)

    @rule(pick=picks, written=tokens)
    def start(self, pick: int, written: list[int]) -> None:
        """The usual beginning, so that more sequences get beyond it."""
        self.claim(pick, "model-1")
        self.checkpoint(pick, 0, 0, written)

    @rule(pick=picks, identity=identities)
    def claim(self, pick: int, identity: str) -> None:
        """A claim without a message: of one that is a duplicate, or came late."""
        self.claim_job(self.job_id(pick), identity)

    @rule(identity=identities)
    def take_the_next(self, identity: str) -> None:
        """What a worker does: the next message, and the claim of its job."""
        message = self.redis.rpop(QUEUE)
        if message is not None:
            self.claim_job(json.loads(message)["headers"]["id"], identity)

    def claim_job(self, job_id: str, identity: str) -> None:
        answer = self.store.claim(job_id, owner="w", lease_ms=LEASE_MS, identity=identity)
        job = self.jobs.get(job_id)
        if job is None or job.state != "queued" or job.is_scheduled:
            refusal = ClaimRefusal.LEASED
            if job is None:
                refusal = ClaimRefusal.UNKNOWN
            elif job.has_ended:
                refusal = ClaimRefusal.TERMINAL
            elif job.is_scheduled:
                refusal = ClaimRefusal.SCHEDULED
            assert answer is refusal
            return
        if job.identity not in (None, identity) and job.tokens:
            job.tokens, job.restarts = [], job.restarts + 1
        job.state, job.identity = "in_progress", identity
        job.fence, job.alone = job.fence + 1, job.suspect >= 3
        assert isinstance(answer, Claim)
        assert (answer.fence, answer.attempts) == (job.fence, job.fence)
        assert (answer.token_ids, answer.alone) == (job.tokens, job.alone)
        assert answer.suspect == job.suspect

    @rule(pick=picks, wrong=fence_errors, shift=position_errors, new=tokens)
    def checkpoint(self, pick: int, wrong: int, shift: int, new: list[int]) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence, position = job.fence + wrong, max(0, len(job.tokens) + shift)
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
    def release(self, pick: int, wrong: int, cause: ReleaseCause) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence = job.fence + wrong
        [status] = self.store.release([Held(job_id, fence)], cause=cause)
        expected = job.put_back(cause) if job.holds(fence) else ReleaseStatus.FENCED
        assert status is expected

    @rule(pick=picks, wrong=fence_errors, shift=position_errors, new=tokens, end=ends)
    def complete(self, pick: int, wrong: int, shift: int, new: list[int], end: JobState) -> None:
        job_id = self.job_id(pick)
        job = self.jobs.get(job_id, Reference(False))
        fence, position = job.fence + wrong, max(0, len(job.tokens) + shift)
        status = self.store.complete(
            job_id, fence=fence, state=end, result="{}", position=position, token_ids=new
        )
        if job.has_ended and job.completed_fence == fence:
            assert status is CompleteStatus.ALREADY_DONE
        elif not job.holds(fence):
            assert status is CompleteStatus.FENCED
        elif not job.append(position, new):
            assert status is CompleteStatus.GAP
        else:
            assert status is CompleteStatus.OK
            job.completed_fence = fence
            job.end(end.value)

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        job_id = self.job_id(pick)
        answer = self.store.cancel(job_id)
        job = self.jobs.get(job_id)
        if job is None:
            assert answer.status is CancelStatus.UNKNOWN
        else:
            assert answer.state == (job.state if job.has_ended else None)
            assert answer.status is job.ask_to_cancel()

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
        """A job that ended badly begins once more, once for a call that is sent twice."""
        job_id = self.job_id(pick)
        call = calls.retry(job_id, QueueLimits())
        answer = self.store.run(call)
        job = self.jobs.get(job_id)
        if job is None:
            assert answer.status is RetryStatus.UNKNOWN
        elif job.state == "completed":
            assert answer.status is RetryStatus.COMPLETED
        elif not job.has_ended:
            assert (answer.status, answer.state) == (RetryStatus.ACTIVE, job.state)
        else:
            self.batch.observe(self.jobs)
            job.retry()
            self.batch.retry(job_id)
            assert (answer.status, answer.run) == (RetryStatus.RETRIED, job.run)
            if is_repeated:
                assert self.store.run(call) == answer

    @rule(pick=picks)
    def forget(self, pick: int) -> None:
        job_id = self.job_id(pick)
        answer = self.store.run(calls.forget(job_id))
        job = self.jobs.get(job_id)
        if job is None:
            known = job_id in self.forgotten
            assert answer.status is (ForgetStatus.FORGOTTEN if known else ForgetStatus.UNKNOWN)
        elif not job.has_ended:
            assert (answer.status, answer.state) == (ForgetStatus.ACTIVE, job.state)
        else:
            assert answer.status is ForgetStatus.FORGOTTEN
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
        if is_first:  # the sweep does not come twice to a job that is retried meanwhile
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
            outcome = job.put_back(ReleaseCause.ENGINE_DEATH)
        assert counts.requeued == (outcome is ReleaseStatus.REQUEUED)
        assert counts.cancelled == (outcome is ReleaseStatus.CANCELLED)
        assert counts.dead == (outcome is ReleaseStatus.DEAD)

    @rule(num_lost=st.integers(0, 3))
    def lose_announcements(self, num_lost: int) -> None:
        for _ in range(num_lost):
            self.redis.rpop(QUEUE)
        # The grace of -1 ms takes announcements of this very millisecond as well.
        missing = self.num_announced() - self.redis.llen(QUEUE)
        assert self.store.sweep(reannounce_grace_ms=-1).reannounced == max(0, missing)
        assert self.store.sweep(reannounce_grace_ms=-1).reannounced == 0

    def num_announced(self) -> int:
        return int(self.redis.zcount(keys.queued(QUEUE), "-inf", "(+inf"))

    @rule(is_late=st.booleans())
    def deliver(self, is_late: bool) -> None:
        lease_ms = 0 if is_late else LEASE_MS
        for entry in self.store.outbox_claim(owner="d", limit=9, lease_ms=lease_ms):
            assert entry.event_id not in self.delivered
            if is_late:  # another deliverer takes it meanwhile
                self.store.outbox_claim(owner="e", limit=9, lease_ms=0)
            status = self.store.outbox_settle(
                entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
            )
            assert status is (WriteStatus.FENCED if is_late else WriteStatus.OK)
            if not is_late:
                self.delivered.add(entry.event_id)

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
        batch = BatchStore(self.store).load(BATCH_ID)
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
    def jobs_are_listed_where_they_are(self) -> None:
        for tag in (None, "x", "xy"):
            page = self.store.run(job_index.list_jobs(JobQuery(tag), 1000))
            assert {status.id: status.state for status in page.jobs} == {
                job_id: job.state for job_id, job in self.jobs.items() if tag in (None, job.tag)
            }

    @invariant()
    def no_place_is_left_empty_while_jobs_wait(self) -> None:
        if self.redis.exists(keys.turns(QUEUE)):
            assert self.redis.llen(QUEUE) >= WINDOW_JOBS

    @invariant()
    def every_key_ends(self) -> None:
        self.check_keys(self.redis)


def test_the_scripts_do_what_the_reference_does(
    redis_url: str, check_keys: Callable[[Redis], None]
) -> None:
    run_state_machine_as_test(
        lambda: ProtocolMachine(redis_url, check_keys),
        settings=settings(max_examples=50, stateful_step_count=40, deadline=None),
    )
