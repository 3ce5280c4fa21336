"""The store of workers, deliverers and operators: named methods over script calls and reads.

The producer's clients use `Store` and the calls themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, cast

from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls import celery_ends as end_calls
from batchmill.producer.protocol.calls import dead_letters as letter_calls
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import workers as worker_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.media import DECODES
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
    PlanState,
    ReleaseCause,
    ReleaseStatus,
    SubmitReply,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts
from batchmill.producer.protocol.sweep_counts import LostSessions, SweepCounts
from batchmill.producer.protocol.used_tokens import UsedTokens

from .letter_labels import NO_LABELS, LetterLabels
from .outbox_store import OutboxStore

#: Dead letters read per round trip: a payload may be a megabyte.
_LETTERS_AT_ONCE = 100


class JobStore(OutboxStore):
    """Job records in Redis, changed only by scripts. `docs/protocol.md` is its contract.

    Thread-safe, because the client's connection pool is.
    """

    # Jobs: the producer's side.

    def submit(self, job: NewJob) -> SubmitReply:
        """Store and announce a job. The same id again returns EXISTING and changes nothing."""
        return self.run(job_calls.submit(job))

    def adopt(self, job: NewJob) -> SubmitReply:
        """Store a job that came inside a Celery message: as `submit`, but beyond any limit.

        The job's id is that of the Celery task: a redelivered message returns EXISTING and changes
        nothing. Make the job with `submission.prepare(…, job_id=…)`.
        """
        return self.run(job_calls.submit(job, is_adopted=True))

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
        self,
        job_id: str,
        *,
        owner: str,
        lease_ms: int,
        identity: str,
        nonce: str | None = None,
        session: str = "",
        prefixes: Sequence[str] = (),
        abilities: Sequence[str] = tuple(DECODES.values()),
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
            session: this run of the worker. If it is lost, the job goes back without waiting for
                the end of its lease.
            prefixes: that the engine holds. A job of another one may be passed over for a job of
                its tenant that has one of them.
            abilities: what the worker can do; a job that needs another one is left to others.
        """
        nonce = nonce or keys.new_claim_nonce()
        return self.run(
            job_calls.claim(job_id, owner, lease_ms, identity, nonce, session, prefixes, abilities)
        )

    def checkpoint(self, writes: Sequence[TokenWrite], *, lease_ms: int) -> list[WriteStatus]:
        """Append tokens of a whole batch and extend the leases; one status per write, in order."""
        return self.run(job_calls.checkpoint(writes, lease_ms)) if writes else []

    def save_plans(self, states: Sequence[PlanState]) -> list[WriteStatus]:
        """Save the state of plans; one status per job (OK, FENCED), in order."""
        return self.run(job_calls.save_plans(states)) if states else []

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
        fence: str,
        state: JobState,
        result: str | None = None,
        error: str | None = None,
        position: int = 0,
        token_ids: Sequence[int] = (),
        used: UsedTokens | None = None,
        retry_in_ms: int | None = None,
        starts_over: bool = False,
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
            used: what its tenant is charged for; None counts the stored output.
            retry_in_ms: a failed job is tried again after this time; None ends it.
            starts_over: that attempt does not continue from the tokens so far.

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
        return self.run(
            job_calls.complete(
                write, state, result, error, used, retry_in_ms, starts_over=starts_over
            )
        )

    def sweep(
        self,
        *,
        limit: int = 500,
        reannounce_grace_ms: int = 30_000,
        sweep_interval_ms: int | None = None,
        extension_ms: int | None = None,
        repair_interval_ms: int | None = None,
        max_letters: int | None = None,
        usage_days: int | None = None,
        unserved_ttl_ms: int | None = None,
    ) -> SweepCounts:
        """Requeue jobs whose lease ran out, expire late ones, repeat lost announcements.

        With `sweep_interval_ms` and `extension_ms`, leases that lapsed while no worker could sweep
        are extended once instead, because their holders could not renew them either. With
        `repair_interval_ms`, a walk over all unfinished jobs begins that often, which repairs what
        deleting keys by hand has torn apart, and expires jobs without a deadline whose queue no
        worker has served for `unserved_ttl_ms`. Of dead letters, the `max_letters` newest are kept,
        and used tokens of the last `usage_days` days.

        Safe to run from any number of workers at once. `limit` bounds the jobs of each kind per
        call, because Redis serves no other client while it runs: call again while a count reaches
        it. Keys of another type than batchmill's are deleted, because scripts would fail on them.
        """
        sweep = job_calls.sweep(
            limit,
            reannounce_grace_ms,
            sweep_interval_ms=sweep_interval_ms,
            extension_ms=extension_ms,
            max_letters=max_letters,
            usage_days=usage_days,
        )
        repair = job_calls.repair_store(
            limit, interval_ms=repair_interval_ms, unserved_ttl_ms=unserved_ttl_ms
        )
        return self.run(sweep).with_repair(self.run(repair))

    def announce_due(self, *, limit: int = 500) -> int:
        """Announce jobs whose delay is over; return how many. Call again if it is `limit`."""
        return self.run(job_calls.announce_due(limit))

    # Plain Celery tasks.

    def take_celery_ends(
        self, *, limit: int, grace_ms: int, lease_ms: int, session: str = ""
    ) -> list[str]:
        """Take plain Celery tasks whose jobs ended `grace_ms` ago or earlier, oldest first.

        They go to others after the lease, or as soon as the caller's `session` is lost.
        """
        return self.run(
            end_calls.take_all(limit=limit, grace_ms=grace_ms, lease_ms=lease_ms, session=session)
        )

    def take_celery_end(self, job_id: str, *, lease_ms: int, session: str = "") -> EndTaken:
        """Take one ended job, to report its end to Celery before `lease_ms` have passed.

        It goes to others after that, or as soon as the caller's `session` is lost.
        """
        return self.run(end_calls.take(job_id, lease_ms=lease_ms, session=session))

    def drop_celery_end(self, job_id: str) -> None:
        """Drop an ended job from those that are to be reported to Celery."""
        pipeline = self.client.pipeline()
        pipeline.zrem(keys.CELERY_ENDS, job_id)
        pipeline.hdel(keys.CELERY_END_TAKERS, job_id)
        pipeline.execute()

    def send_celery_task(self, key: str, message: str, *, sending: str, ttl_ms: int) -> bool:
        """Push a task's message onto a list once; return False if it was sent before.

        Args:
            key: of the list.
            message: as kombu writes it.
            sending: what is sent once: the task's id and the number of its retry.
            ttl_ms: how long it is remembered.
        """
        return self.run(end_calls.send_task(key, message, sending=sending, ttl_ms=ttl_ms))

    # The inbox. `protocol/calls/inbox.py` has the calls that take and settle documents.

    def inbox_wait(self, timeout_s: float) -> bool:
        """Wait until the inbox holds a document; return False if none came in time."""
        # Moved in one step, and not yet under an id: any `take` finds it, whichever process dies.
        seconds = cast(Any, timeout_s)  # Redis takes a fraction, redis-py's annotation does not
        moved = self.client.blmove(keys.INBOX, keys.INBOX_ARRIVED, seconds, "RIGHT", "LEFT")
        return moved is not None

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
        labels: LetterLabels = NO_LABELS,
    ) -> str:
        """Store a dead letter; return its id, which is new unless one is given.

        If a letter with that id has other content, it is replaced; with a spare id it stays, and
        the new letter is stored under the spare id. By its labels the letter is found to be erased.
        """
        letter_id = letter_id or f"dead_{secrets.token_hex(10)}"
        rest = (kind.value, reason, payload, source)
        known: dict[str, Any] = {"tenant": labels.tenant, "tags": labels.tags}
        if self.run(letter_calls.add(letter_id, *rest, keeps_other=bool(spare_id), **known)):
            return letter_id
        self.run(letter_calls.add(spare_id, *rest, keeps_other=False, **known))
        return spare_id

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

    def announce_worker(self, info: WorkerInfo, *, timeout_ms: int = 3000) -> int:
        """Write a worker's heartbeat; `WORKER_TTL_S` after the last one the worker is not listed.

        Args:
            info: the heartbeat.
            timeout_ms: its session is silent if no other heartbeat follows within this time.

        Returns:
            The number of the session's connections that Redis sees.
        """
        return self.run(worker_calls.heartbeat(info, timeout_ms))

    def forget_worker(self, name: str, session: str = "") -> None:
        """Remove a worker's heartbeat, when it shuts down.

        If it still holds jobs, because it had no time to give them back, other workers put them
        back as soon as the session's connection is closed.
        """
        self.client.delete(keys.worker(name))
        self.client.srem(keys.WORKERS, name)
        self.forget_session(session)

    def note_session(self, session: str, *, timeout_ms: int) -> int:
        """Note that the session of a program that is not a worker is alive.

        Args:
            session: this run of the program.
            timeout_ms: the session is silent if no other call follows within this time.

        Returns:
            The number of the session's connections that Redis sees.
        """
        return self.run(worker_calls.note_session(session, timeout_ms))

    def num_live_sessions(self) -> int:
        """Return how many workers and deliverers have given a sign of life lately."""
        seconds, microseconds = cast(Any, self.client.time())
        now_ms = seconds * 1000 + microseconds // 1000
        return int(cast(Any, self.client.zcount(keys.SESSIONS, now_ms, "+inf")))

    def forget_session(self, session: str) -> None:
        """Let what a session still has go to others as soon as its connection is closed."""
        self.client.zadd(keys.SESSIONS, {session: 0}, xx=True)

    def end_lost_sessions(
        self, session: str, *, connected_ms: int, limit: int = 500
    ) -> LostSessions:
        """Put back the jobs of workers that are gone; call again while `limit` jobs are.

        What else they, or deliverers, had taken is handed out again.

        Args:
            session: of the caller.
            connected_ms: for how long the caller's own connection has been open.
            limit: of jobs, because Redis serves no other client during the call.
        """
        return self.run(worker_calls.end_lost_sessions(session, connected_ms, limit))

    def queue_depths(self) -> list[QueueDepth]:
        """Return the depth of every queue that holds jobs, by name."""
        return self.read(reads.queue_depths(self.read(reads.queue_names())))

    def counts(self) -> StoreCounts:
        """Return the totals of the store."""
        return self.read(reads.counts(self.queue_depths()))
