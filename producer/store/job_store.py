"""The store of workers, deliverers and operators: named methods over script calls and reads.

The producer's clients use `Store` and the calls themselves.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from typing import Any, cast

from redis.exceptions import RedisError

from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls import celery_ends as end_calls
from batchmill.producer.protocol.calls import dead_letters as letter_calls
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import outbox as outbox_calls
from batchmill.producer.protocol.calls import workers as worker_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry, RedeliverStatus
from batchmill.producer.protocol.records import (
    DeadLetter,
    DeadLetterKind,
    JobRecord,
    WorkerInfo,
)
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    EndTaken,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    SubmitReply,
    SweepCounts,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts

from .store import Store

#: Dead letters read per round trip: a payload may be a megabyte.
_LETTERS_AT_ONCE = 100


class JobStore(Store):
    """Job records in Redis, changed only by scripts. `docs/protocol.md` is its contract.

    Thread-safe, because the client's connection pool is.
    """

    # Jobs: the producer's side.

    def submit(self, job: NewJob) -> SubmitReply:
        """Store and announce a job. The same id again returns EXISTING and changes nothing."""
        return self.run(job_calls.submit(job))

    def adopt(self, job: NewJob) -> SubmitReply:
        """Store a job that came inside a Celery message: as `submit`, without announcing it.

        The job's id is that of the Celery task: a redelivered message returns EXISTING and changes
        nothing. Make the job with `submission.prepare(…, job_id=…)`.
        """
        return self.run(job_calls.submit(job, announce=False))

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a waiting job at once; ask the worker of a running one to stop."""
        return self.run(job_calls.cancel(job_id))

    def queue_position(self, job_id: str) -> int | None:
        """Estimate how many jobs of its queue go to a worker before a waiting one.

        Exact among the jobs of one tenant; between tenants it depends on what each submits next
        and on the lengths of outputs. Higher classes, which come first, are not counted.

        Returns:
            None if the job does not wait, or its delay is not over.
        """
        return self.run(job_calls.position(job_id))

    def load(self, job_id: str) -> JobRecord | None:
        """Return a job's record; None if it is unknown or its time to live has run out."""
        return self.read(reads.job(job_id))

    def state(self, job_id: str) -> JobState | None:
        """Return a job's state; None if the job is unknown."""
        return self.read(reads.job_states([job_id]))[0]

    def read_tokens(self, job_id: str, start: int = 0) -> list[int]:
        """Return the generated token ids from index `start` on."""
        return self.read(reads.tokens(job_id, start))

    def num_tokens(self, job_id: str) -> int:
        """Return how many generated tokens are stored."""
        return self.read(reads.num_tokens(job_id))

    # Jobs: the worker's side.

    def claim(
        self, job_id: str, *, owner: str, lease_ms: int, identity: str, nonce: str | None = None
    ) -> Claim | ClaimRefusal:
        """Take a queued job under a lease and a new fence, or return why not.

        Args:
            job_id: the job.
            owner: the worker's name, for people.
            lease_ms: the job goes back to its queue if its lease is not extended for this long.
            identity: names weights, tokenizer, dtype and sampler version. Tokens of an earlier
                attempt are kept only if they came from the same identity.
            nonce: names this claim. A call that is repeated with it after a lost reply finds the
                claim that it has made; None is a fresh one.
        """
        nonce = nonce or keys.new_claim_nonce()
        return self.run(job_calls.claim(job_id, owner, lease_ms, identity, nonce))

    def checkpoint(self, writes: Sequence[TokenWrite], *, lease_ms: int) -> list[WriteStatus]:
        """Append tokens of a whole batch and extend the leases; one status per write, in order."""
        return self.run(job_calls.checkpoint(writes, lease_ms)) if writes else []

    def renew(self, held: Sequence[HeldJob], *, lease_ms: int) -> list[WriteStatus]:
        """Extend leases; one status per job (OK, FENCED, CANCEL_REQUESTED), in order."""
        return self.run(job_calls.renew(held, lease_ms)) if held else []

    def release(self, held: Sequence[HeldJob], *, cause: ReleaseCause) -> list[ReleaseStatus]:
        """Give jobs back to the head of their queues; one status per job, in order."""
        return self.run(job_calls.release(held, cause)) if held else []

    def complete(
        self,
        job_id: str,
        *,
        fence: int,
        state: JobState,
        result: str | None = None,
        error: str | None = None,
        position: int = 0,
        token_ids: Sequence[int] = (),
        num_tokens: int | None = None,
    ) -> CompleteStatus:
        """End a job: last tokens, result or error, terminal state and webhook event in one.

        Args:
            job_id: the job.
            fence: of the claim.
            state: a terminal state.
            result: JSON of a `JobResult`; also for a job that ended early with partial output.
            error: JSON of a `JobError`.
            position: index of the first of `token_ids` in the output.
            token_ids: tokens not checkpointed yet.
            num_tokens: its cost for its tenant, prompt and output; None counts the stored output.

        Raises:
            ValueError: the state is not terminal, or a completed job has no result.
        """
        if state is JobState.COMPLETED and result is None:
            raise ValueError("a completed job needs its result")
        if not state.is_terminal:
            raise ValueError(
                f"state is {state.value!r}; a job ends completed, failed, cancelled or expired"
            )
        write = TokenWrite(job_id, fence, position, token_ids)
        return self.run(job_calls.complete(write, state, result, error, num_tokens))

    def sweep(
        self,
        *,
        limit: int = 500,
        reannounce_grace_ms: int = 30_000,
        sweep_interval_ms: int | None = None,
        extension_ms: int | None = None,
    ) -> SweepCounts:
        """Requeue jobs whose lease ran out, expire late ones, repeat lost announcements.

        With `sweep_interval_ms` and `extension_ms`, leases that lapsed while no worker could sweep
        are extended once instead, because their holders could not renew them either.

        Safe to run from any number of workers at once. `limit` bounds the jobs of each kind per
        call, because Redis serves no other client while it runs: call again while a count reaches
        it.
        """
        call = job_calls.sweep(
            limit,
            reannounce_grace_ms,
            sweep_interval_ms=sweep_interval_ms,
            extension_ms=extension_ms,
        )
        return self.run(call)

    def announce_due(self, *, limit: int = 500) -> int:
        """Announce jobs whose delay is over; return how many. Call again if it is `limit`."""
        return self.run(job_calls.announce_due(limit))

    # Plain Celery tasks.

    def take_celery_ends(self, *, limit: int, grace_ms: int, lease_ms: int) -> list[str]:
        """Take plain Celery tasks whose jobs ended `grace_ms` ago or earlier, oldest first."""
        return self.run(end_calls.take_all(limit=limit, grace_ms=grace_ms, lease_ms=lease_ms))

    def take_celery_end(self, job_id: str, *, lease_ms: int) -> EndTaken:
        """Take one ended job, to report its end to Celery before `lease_ms` have passed."""
        return self.run(end_calls.take(job_id, lease_ms=lease_ms))

    def drop_celery_end(self, job_id: str) -> None:
        """Drop an ended job from those that are to be reported to Celery."""
        self.client.zrem(keys.CELERY_ENDS, job_id)

    # The inbox. `protocol/calls/inbox.py` has the calls that take and settle documents.

    def inbox_wait(self, timeout_s: float) -> bool:
        """Wait until the inbox holds a document; return False if none came in time."""
        # Moved in one step, and not yet under an id: any `take` finds it, whichever process dies.
        seconds = cast(Any, timeout_s)  # Redis takes a fraction, redis-py's annotation does not
        moved = self.client.blmove(keys.INBOX, keys.INBOX_ARRIVED, seconds, "RIGHT", "LEFT")
        return moved is not None

    # Webhooks: the deliverer's side.

    def outbox_claim(self, *, owner: str, limit: int, lease_ms: int) -> list[OutboxEntry]:
        """Take events that are due. If the deliverer dies, they are due again after `lease_ms`.

        Events that cannot be read become dead letters.
        """
        claimed = self.run(outbox_calls.claim(owner, limit, lease_ms))
        with contextlib.suppress(RedisError):  # they are due again after the lease
            for event in claimed.unusable:
                self.run(outbox_calls.settle_unusable(event))
        return claimed.entries

    def outbox_set_body_once(self, event_id: str, body: bytes) -> bytes:
        """Store an event's body unless it has one; return the stored body, which is sent."""
        return self.run(outbox_calls.set_body_once(event_id, body))

    def outbox_settle(
        self,
        event_id: str,
        *,
        fence: int,
        outcome: DeliveryOutcome,
        retry_in_ms: int = 0,
        http_status: int | None = None,
        reason: str = "",
        duration_ms: int = 0,
        is_receiver_fault: bool = False,
    ) -> WriteStatus:
        """Record how an attempt ended: OK, or FENCED if another deliverer has the lease.

        Args:
            event_id: the event.
            fence: of the claim.
            outcome: EXHAUSTED and DISABLED leave a dead letter.
            retry_in_ms: with RETRY and POSTPONED, time until the next attempt.
            http_status: status of the receiver's response, if there was one.
            reason: one word, for people; never the receiver's body.
            duration_ms: time that the attempt took.
            is_receiver_fault: whether the receiver failed, not this system. An endpoint that fails
                for 120 hours without a success is disabled.
        """
        return self.run(
            outbox_calls.settle(
                *(event_id, fence, outcome),
                retry_in_ms=retry_in_ms,
                http_status=http_status,
                reason=reason,
                duration_ms=duration_ms,
                is_receiver_fault=is_receiver_fault,
            )
        )

    def outbox_redeliver(self, event_id: str) -> RedeliverStatus:
        """Put a settled event back, with the same id and body, and drop its dead letter."""
        return self.run(outbox_calls.redeliver(event_id))

    # Dead letters.

    def dead_letter_add(
        self,
        *,
        kind: DeadLetterKind,
        reason: str,
        payload: bytes,
        source: str,
        letter_id: str | None = None,
        spare_id: str = "",
    ) -> str:
        """Store a dead letter; return its id, which is new unless one is given.

        If a letter with that id has other content, it is replaced; with a spare id it stays, and
        the new letter is stored under the spare id.
        """
        letter_id = letter_id or f"dead_{secrets.token_hex(10)}"
        call = letter_calls.add(letter_id, kind.value, reason, payload, source, spare_id)
        return self.run(call)

    def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """Return a dead letter; None if it does not exist."""
        return self.read(reads.dead_letters([letter_id]))[0]

    def dead_letters(self, *, offset: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, newest first."""
        ids = self.read(reads.dead_letter_ids(offset, limit))
        found: list[DeadLetter | None] = []
        for start in range(0, len(ids), _LETTERS_AT_ONCE):
            found += self.read(reads.dead_letters(ids[start : start + _LETTERS_AT_ONCE]))
        return [letter for letter in found if letter is not None]

    def dead_letter_drop(self, letter_id: str) -> bool:
        """Delete a dead letter; return False if it does not exist."""
        with self.client.pipeline(transaction=True) as pipeline:
            pipeline.delete(keys.dead(letter_id))
            pipeline.zrem(keys.DEAD, letter_id)
            return bool(pipeline.execute()[0])

    # Workers, queues and counts.

    def announce_worker(self, info: WorkerInfo) -> None:
        """Write a worker's heartbeat; it counts as gone `WORKER_TTL_S` after the last one."""
        self.run(worker_calls.heartbeat(info))

    def forget_worker(self, name: str) -> None:
        """Remove a worker's heartbeat, when it shuts down."""
        self.client.delete(keys.worker(name))
        self.client.srem(keys.WORKERS, name)

    def queue_depths(self) -> list[QueueDepth]:
        """Return the depth of every queue ever used, by name."""
        return self.read(reads.queue_depths(self.read(reads.queue_names())))

    def counts(self) -> StoreCounts:
        """Return the totals of the store."""
        return self.read(reads.counts(self.queue_depths()))
