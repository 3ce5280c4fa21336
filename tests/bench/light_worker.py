"""`LightWorker`: what a worker says to Redis, without Celery and without an engine.

It uses the real store and therefore the real scripts, at a worker's own intervals: it pops
announcements, claims, writes checkpoints of all its jobs together, ends jobs, and does what every
worker does besides: heartbeat, sweep, delayed jobs, lost workers, missing results. So fifty of them
fit into one process, and cost Redis what fifty workers do. Left out are the blocking calls that
wait for plain Celery tasks and for the inbox, which `one_redis.py` counts with real workers.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from batchmill.producer import JobResult, JobState
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.protocol.replies import Claim, HeldJob, TokenWrite, WriteStatus
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs.fleet_turns import FleetTurns
from batchmill.worker.jobs.session_connection import SessionConnection
from batchmill.worker.jobs.sweeper import announce_delayed_jobs

#: Of every light worker, so that jobs continue from their tokens.
IDENTITY = "light"
MODEL = "demo"
_BLOCK_S = 0.5


@dataclass
class _Active:
    """A job in the worker."""

    claim: Claim
    num_tokens: int
    position: int


class LightWorker:
    """One worker in one thread. Any number may run in a process."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        places: int = 16,
        step_tokens: int = 8,
        checkpoint_s: float = 0.25,
        lease_s: float = 15.0,
        heartbeat_s: float = 1.0,
    ) -> None:
        """Set the worker up; nothing is sent before `start`.

        Args:
            url: of its broker.
            name: of the worker.
            places: jobs that it takes at once.
            step_tokens: tokens that each job gets per checkpoint.
            checkpoint_s: seconds between two checkpoints.
            lease_s: seconds of a lease.
            heartbeat_s: seconds between two heartbeats.
        """
        self.name = name
        self._session = keys.new_session(name)
        self._store = JobStore.from_url(url)
        self._connection = SessionConnection(url, self._session)
        self._places = places
        self._step_tokens = step_tokens
        self._lease_ms = int(lease_s * 1000)
        self._active: dict[str, _Active] = {}
        #: A job that was announced and is not claimed yet, and the name of its claim.
        self._announced: tuple[str, str] | None = None
        self._must_stop = threading.Event()
        self._is_killed = False
        self._queues = [keys.announced(queue) for queue in keys.queue_names(MODEL)]
        self._started_at_ms = int(time.time() * 1000)
        turn = FleetTurns(self._store.num_live_sessions).turn
        self._duties: list[tuple[float, Callable[[], Any]]] = [
            (checkpoint_s, self._checkpoint),
            (heartbeat_s, self._heartbeat),
            (lease_s / 3, self._renew),
            (0.5, turn(0.5).limited(partial(announce_delayed_jobs, self._store))),
            (0.5, turn(0.5).limited(self._end_lost_sessions)),
            (0.5, turn(0.5).limited(self._take_celery_ends)),
            (2.0, turn(2.0).limited(self._sweep)),
        ]
        self._due = [time.monotonic() + random.random() * every_s for every_s, _ in self._duties]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        #: Why the thread ended, if it was not asked to.
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to work."""
        self._connection.start()
        self._thread.start()

    def kill(self) -> None:
        """End as a killed process does: nothing is given back, and its connections close."""
        self._is_killed = True
        self.stop()

    def stop(self) -> None:
        """End. Jobs that are still active stay in their leases."""
        self._must_stop.set()
        self._thread.join(30)
        self._connection.close(5)
        if not self._is_killed:
            self._store.forget_worker(self.name, self._session)
        self._store.close()

    def _run(self) -> None:
        try:
            self._heartbeat()
            while not self._must_stop.is_set():
                try:
                    self._do_what_is_due()
                    self._take_job()
                except RedisError:  # a worker goes on, too; its claims are found by their nonces
                    self._must_stop.wait(0.5)
        except BaseException as error:
            self.failure = error

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for number, (every_s, duty) in enumerate(self._duties):
            if now >= self._due[number]:
                duty()
                self._due[number] = now + every_s * random.uniform(0.85, 1.15)

    def _take_job(self) -> None:
        """Wait for an announcement until the next duty, and claim its job."""
        # Without jobs, only a heartbeat ends the wait early, as only that is sent on time.
        timed = self._due[:3] if self._active else self._due[1:2]
        wait_s = max(0.01, min(_BLOCK_S, min(timed) - time.monotonic()))
        if len(self._active) >= self._places:
            self._must_stop.wait(wait_s)
            return
        client: Any = self._store.client
        if self._announced is None:
            reply = client.brpop(self._queues, timeout=wait_s)
            if reply is None or self._must_stop.is_set():
                return
            job_id = json.loads(reply[1])["headers"]["id"]
            self._announced = job_id, keys.new_claim_nonce()
        job_id, nonce = self._announced
        claim = self._store.claim(
            job_id,
            owner=self.name,
            lease_ms=self._lease_ms,
            identity=IDENTITY,
            nonce=nonce,
            session=self._session,
        )
        self._announced = None
        if isinstance(claim, Claim):
            num_tokens = json.loads(claim.document)["max_tokens"]
            self._active[job_id] = _Active(claim, num_tokens, len(claim.token_ids))

    def _checkpoint(self) -> None:
        """Add tokens to all jobs in one call, and end those that have enough."""
        writes, ending = [], []
        for job_id, job in self._active.items():
            left = job.num_tokens - job.position
            if left > self._step_tokens:
                writes.append(self._write(job_id, job, self._step_tokens))
            else:
                ending.append((job_id, job))
        statuses = self._store.checkpoint(writes, lease_ms=self._lease_ms)
        for write, status in zip(writes, statuses, strict=True):
            if status is WriteStatus.OK:
                self._active[write.job_id].position += len(write.token_ids)
            else:
                self._active.pop(write.job_id)
        for job_id, job in ending:
            self._end(job_id, job)

    def _write(self, job_id: str, job: _Active, count: int) -> TokenWrite:
        text = b" word" * count
        return TokenWrite(
            job_id,
            job.claim.fence,
            job.position,
            range(job.position, job.position + count),
            text=text,
            text_position=5 * job.position,
            identity=IDENTITY,
        )

    def _end(self, job_id: str, job: _Active) -> None:
        result = JobResult(
            id=job_id,
            model=MODEL,
            status=JobState.COMPLETED,
            text=" word" * job.num_tokens,
        )
        self._store.complete(
            job_id,
            fence=job.claim.fence,
            state=JobState.COMPLETED,
            result=result.model_dump_json(),
            position=job.position,
            token_ids=range(job.position, job.num_tokens),
        )
        self._active.pop(job_id)

    def _renew(self) -> None:
        held = [HeldJob(job_id, job.claim.fence) for job_id, job in self._active.items()]
        self._store.renew(held, lease_ms=self._lease_ms)

    def _heartbeat(self) -> None:
        info = WorkerInfo(
            name=self.name,
            model=MODEL,
            identity=IDENTITY,
            queues=keys.queue_names(MODEL),
            max_model_len=4096,
            max_num_seqs=self._places,
            started_at_ms=self._started_at_ms,
            state="ready",
            versions=keys.SUPPORTED_VERSIONS,
            session=self._session,
            stats={"jobs": len(self._active), "tokens_per_s": 100.0},
        )
        self._store.announce_worker(info)

    def _end_lost_sessions(self) -> None:
        connected_ms = int(self._connection.connected_s * 1000)
        self._store.end_lost_sessions(self._session, connected_ms=connected_ms)

    def _take_celery_ends(self) -> None:
        self._store.take_celery_ends(
            limit=100, grace_ms=30_000, lease_ms=30_000, session=self._session
        )

    def _sweep(self) -> None:
        self._store.sweep(
            sweep_interval_ms=2000,
            extension_ms=15_000,
            repair_interval_ms=1000,
            max_letters=10_000,
            usage_days=400,
            unserved_ttl_ms=604_800_000,
        )
