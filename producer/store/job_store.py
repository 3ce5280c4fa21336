"""The typed face of the job protocol: one method a script. `docs/protocol.md` is its contract."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from redis import Redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from batchmill.producer.protocol import calls, keys
from batchmill.producer.protocol.calls import Call, NewJob
from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry, RedeliverStatus
from batchmill.producer.protocol.records import (
    DeadLetter,
    DeadLetterKind,
    JobRecord,
    WorkerInfo,
    read_dead_letter,
    read_job,
    read_state,
    read_worker,
    write_worker,
)
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    SubmitReply,
    SweepCounts,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source
from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts

from .connection import connect
from .read_ends import MAX_READ_AT_ONCE, EndedJob, chunks, queue_end_reads, read_ends
from .read_stream import StreamPosition, queue_stream_read

Answer = TypeVar("Answer")


class JobStore:
    """Job records in Redis, changed only by scripts.

    Owns nothing but the client it is given; thread-safe, because the client's connection pool is.
    Every call may raise `redis.exceptions.RedisError`. A client with retries repeats a call whose
    answer was lost; each script is made for that.
    """

    def __init__(self, client: Redis) -> None:
        """Bind to a client that returns bytes (`decode_responses=False`)."""
        self.client = client
        self._scripts = {name: client.register_script(script_source(name)) for name in SCRIPT_NAMES}

    @classmethod
    def from_url(cls, url: str) -> JobStore:
        """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`."""
        return cls(connect(url))

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def run(self, call: Call[Answer]) -> Answer:
        """Run one script call and read its answer."""
        try:
            reply = self._scripts[call.script](args=call.args)
        except OutOfMemoryError as error:
            reply = error
        return calls.read_reply(call, reply)

    def run_all(self, batch: Sequence[Call[Answer]]) -> list[Answer]:
        """Run script calls in one round trip (each atomic, the pipeline as a whole not)."""
        with self.client.pipeline(transaction=False) as pipeline:
            for call in batch:
                pipeline.evalsha(self._scripts[call.script].sha, 0, *call.args)
            replies = pipeline.execute(raise_on_error=False)
        self._run_unknown(batch, replies)
        return [calls.read_reply(call, reply) for call, reply in zip(batch, replies, strict=True)]

    def _run_unknown(self, batch: Sequence[Call[Any]], replies: list[Any]) -> None:
        """Run the calls whose script the server did not know, in order; put in the replies.

        They come after all the others: where order matters, the calls are of one script.

        A server that was started anew knows none. redis-py's own way is to ask before each batch
        which scripts are known, in a round trip of its own.
        """
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not unknown:
            return
        with self.client.pipeline(transaction=False) as pipeline:
            for i in unknown:
                self._scripts[batch[i].script](args=batch[i].args, client=pipeline)
            for i, reply in zip(unknown, pipeline.execute(raise_on_error=False), strict=True):
                replies[i] = reply

    # Jobs: the producer's side.

    def submit(self, job: NewJob) -> SubmitReply:
        """Store and announce a job. The same id again answers EXISTING and changes nothing."""
        return self.run(calls.submit(job))

    def adopt(self, job: NewJob) -> SubmitReply:
        """Store a job that came inside a Celery message: as `submit`, without announcing it.

        The job's id is the Celery task's: a message delivered again answers EXISTING and changes
        nothing. Make the job with `submission.prepare(…, job_id=…)`.
        """
        return self.run(calls.submit(job, announce=False))

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a waiting job at once; ask the worker of a running one to stop."""
        return self.run(calls.cancel(job_id))

    def queue_position(self, job_id: str) -> int | None:
        """Estimate how many jobs of its queue go to a worker before a waiting one.

        Exact among the jobs of one tenant; where tenants take turns, what each sends from now on
        and the lengths of outputs decide. Higher classes, which come first, are not in it.

        Returns:
            None where the job does not wait, or its delay is not over.
        """
        return self.run(calls.position(job_id))

    def load(self, job_id: str) -> JobRecord | None:
        """Return a job's record, or None where it is unknown or its time to live has run out."""
        return read_job(cast(Any, self.client.hgetall(keys.job(job_id))))

    def state(self, job_id: str) -> JobState | None:
        """Return a job's state, or None where it is unknown."""
        return read_state(self.client.hget(keys.job(job_id), "state"))

    def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """Return the states of jobs in one round trip; None where one is unknown."""
        with self.client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job(job_id), "state")
            return [read_state(reply) for reply in pipeline.execute()]

    def load_ends(self, job_ids: Sequence[str]) -> list[EndedJob]:
        """Return how jobs ended, with their output, in few round trips."""
        ends: list[EndedJob] = []
        for some in chunks(job_ids, MAX_READ_AT_ONCE):
            with self.client.pipeline(transaction=False) as pipeline:
                queue_end_reads(pipeline, some)
                ends += read_ends(some, pipeline.execute())
        return ends

    def read_tokens(self, job_id: str, start: int = 0) -> list[int]:
        """Return the generated token ids from index `start` on."""
        data = self.client.getrange(keys.tokens(job_id), start * 4, -1)
        return calls.decode_tokens(cast(bytes, data))

    def read_stream(self, job_id: str, position: StreamPosition) -> list[Any]:
        """Return the replies that `StreamReader.take` reads: one moment of the record."""
        with self.client.pipeline(transaction=True) as pipeline:
            queue_stream_read(pipeline, job_id, position)
            return pipeline.execute()

    def num_tokens(self, job_id: str) -> int:
        """Return how many generated tokens are stored."""
        return self.client.strlen(keys.tokens(job_id)) // 4

    # Jobs: the worker's side.

    def claim(
        self, job_id: str, *, owner: str, lease_ms: int, identity: str
    ) -> Claim | ClaimRefusal:
        """Take a queued job under a lease and a new fence, or say why not.

        Args:
            job_id: the job.
            owner: the worker's name, for people.
            lease_ms: the job goes back to its queue if nothing is heard of it for this long.
            identity: names weights, tokenizer, dtype and sampler version. Tokens of an earlier
                attempt are handed over only where they came from the same identity; else they
                are discarded.
        """
        return self.run(calls.claim(job_id, owner, lease_ms, identity))

    def checkpoint(self, writes: Sequence[TokenWrite], *, lease_ms: int) -> list[WriteStatus]:
        """Append tokens of a whole batch and extend the leases; one status a write, in order."""
        return self.run(calls.checkpoint(writes, lease_ms)) if writes else []

    def renew(self, held: Sequence[HeldJob], *, lease_ms: int) -> list[WriteStatus]:
        """Extend leases; one status a job (OK, FENCED, CANCEL_REQUESTED), in order."""
        return self.run(calls.renew(held, lease_ms)) if held else []

    def release(self, held: Sequence[HeldJob], *, cause: ReleaseCause) -> list[ReleaseStatus]:
        """Give jobs back to the head of their queues; one status a job, in order."""
        return self.run(calls.release(held, cause)) if held else []

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
            num_tokens: what it cost its tenant, prompt and output; None counts the stored output.

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
        return self.run(calls.complete(write, state, result, error, num_tokens))

    def sweep(self, *, limit: int = 500, reannounce_grace_ms: int = 30_000) -> SweepCounts:
        """Put back jobs whose lease ran out, expire late ones, announce again what was lost.

        Safe to run from any number of workers at once. `limit` bounds the jobs of each kind in
        one call, because Redis serves nobody else while it runs: call again while a count reaches
        it.
        """
        return self.run(calls.sweep(limit, reannounce_grace_ms))

    def announce_due(self, *, limit: int = 500) -> int:
        """Announce jobs whose delay is over; answers how many. Call again where it is `limit`."""
        return self.run(calls.announce_due(limit))

    # Plain Celery tasks.

    def celery_ends(self, *, limit: int, grace_ms: int) -> list[str]:
        """Return plain Celery tasks whose jobs ended so long ago, oldest first."""
        seconds, microseconds = cast(Any, self.client.time())
        until = seconds * 1000 + microseconds // 1000 - grace_ms
        ended = cast(
            list[bytes], self.client.zrangebyscore(keys.CELERY_ENDS, "-inf", until, 0, limit)
        )
        return [job_id.decode(errors="replace") for job_id in ended]

    def celery_end_told(self, job_id: str) -> None:
        """Note that Celery's result backend knows how a job ended."""
        self.client.zrem(keys.CELERY_ENDS, job_id)

    # The inbox. What is taken and settled there are calls of `inbox.py`.

    def inbox_wait(self, timeout_s: float) -> bool:
        """Wait until the inbox holds a document; False where none came in time."""
        # Moved in one step, and not yet under an id: any `take` finds it, whoever dies.
        seconds = cast(Any, timeout_s)  # Redis takes a fraction, redis-py's annotation does not
        moved = self.client.blmove(keys.INBOX, keys.INBOX_ARRIVED, seconds, "RIGHT", "LEFT")
        return moved is not None

    # Webhooks: the deliverer's side.

    def outbox_claim(self, *, owner: str, limit: int, lease_ms: int) -> list[OutboxEntry]:
        """Take events that are due. One whose deliverer dies is due again after `lease_ms`."""
        return self.run(calls.outbox_claim(owner, limit, lease_ms))

    def outbox_set_body_once(self, event_id: str, body: bytes) -> bytes:
        """Store an event's body unless it has one; return the stored one, which all tries send."""
        return self.run(Call("outbox_set_body", (event_id, body), bytes))

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
        """Write down how an attempt ended: OK, or FENCED where the lease had gone to another.

        Args:
            event_id: the event.
            fence: of the claim.
            outcome: EXHAUSTED and DISABLED leave a dead letter.
            retry_in_ms: with RETRY and POSTPONED, time until the next attempt.
            http_status: what the receiver answered, if it did.
            reason: a word, for people; never the receiver's body.
            duration_ms: time that the attempt took.
            is_receiver_fault: the receiver failed, not we; an endpoint that does so for 120 hours
                without a success is disabled.
        """
        status = "" if http_status is None else http_status
        fault = "1" if is_receiver_fault else "0"
        args = (event_id, fence, outcome.value, retry_in_ms, status, reason, duration_ms, fault)
        return self.run(Call("outbox_settle", args, lambda reply: WriteStatus(reply.decode())))

    def outbox_redeliver(self, event_id: str) -> RedeliverStatus:
        """Put a settled event back, with the same id and body, and drop its dead letter."""
        call = Call("outbox_redeliver", (event_id,), lambda reply: RedeliverStatus(reply.decode()))
        return self.run(call)

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
        """Keep something that cannot be used, with the reason; returns its id, new unless given.

        A letter of that id that holds something else is replaced, or, with a spare id, left alone:
        then the new one is kept under that.
        """
        letter_id = letter_id or f"dead_{secrets.token_hex(10)}"
        args = (letter_id, kind.value, reason, payload, source, spare_id)
        return self.run(Call("dead_letter_add", args, lambda reply: cast(str, reply.decode())))

    def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """Return a dead letter, or None where there is none of that id."""
        return read_dead_letter(cast(Any, self.client.hgetall(keys.dead(letter_id))))

    def dead_letters(self, *, offset: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, newest first."""
        ids = cast(list[bytes], self.client.zrevrange(keys.DEAD, offset, offset + limit - 1))
        letters = (self.dead_letter(letter_id.decode()) for letter_id in ids)
        return [letter for letter in letters if letter is not None]

    def dead_letter_drop(self, letter_id: str) -> bool:
        """Delete a dead letter; False where there is none of that id."""
        with self.client.pipeline(transaction=True) as pipeline:
            pipeline.delete(keys.dead(letter_id))
            pipeline.zrem(keys.DEAD, letter_id)
            return bool(pipeline.execute()[0])

    # Workers, queues and counts.

    def announce_worker(self, info: WorkerInfo) -> None:
        """Write a worker's heartbeat; it counts as gone `WORKER_TTL_S` after the last."""
        with self.client.pipeline(transaction=True) as pipeline:
            pipeline.set(keys.worker(info.name), write_worker(info), ex=keys.WORKER_TTL_S)
            pipeline.sadd(keys.WORKERS, info.name)
            pipeline.execute()

    def forget_worker(self, name: str) -> None:
        """Remove a worker's heartbeat, at its orderly end."""
        self.client.delete(keys.worker(name))
        self.client.srem(keys.WORKERS, name)

    def list_workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, by name."""
        names = sorted(cast(Iterable[bytes], self.client.smembers(keys.WORKERS)))
        if not names:
            return []
        beats = cast(
            list[bytes | None], self.client.mget([keys.worker(name.decode()) for name in names])
        )
        gone = [name for name, beat in zip(names, beats, strict=True) if beat is None]
        if gone:
            self.client.srem(keys.WORKERS, *gone)
        read = (read_worker(beat) for beat in beats if beat is not None)
        return [info for info in read if info is not None]

    def queue_depths(self) -> list[QueueDepth]:
        """Return every queue ever used, by name."""
        names = sorted(
            name.decode() for name in cast(Iterable[bytes], self.client.smembers(keys.QUEUES))
        )
        with self.client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.zcard(keys.queued(name))
                pipeline.llen(name)
            numbers = pipeline.execute()
        return [
            QueueDepth(name, numbers[2 * i], numbers[2 * i + 1]) for i, name in enumerate(names)
        ]

    def counts(self) -> StoreCounts:
        """Return the store at a glance."""
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.zcard(keys.SCHEDULED)
            pipeline.zcard(keys.LEASES)
            pipeline.zcard(keys.OUTBOX)
            pipeline.zcard(keys.DEAD)
            pipeline.hgetall(keys.TOTALS)
            pipeline.llen(keys.INBOX)
            pipeline.llen(keys.INBOX_ARRIVED)
            pipeline.zcard(keys.INBOX_TAKEN)
            scheduled, in_progress, outbox, dead_letters, totals, *inbox = pipeline.execute()
        return StoreCounts(
            queued=sum(depth.queued for depth in self.queue_depths()),
            scheduled=scheduled,
            in_progress=in_progress,
            outbox=outbox,
            dead_letters=dead_letters,
            inbox=sum(inbox),
            totals={name.decode(): int(value) for name, value in totals.items()},
        )
