"""Moves jobs from busy workers to workers that have room, once nothing waits in the queues."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import spread as calls
from batchmill.producer.protocol.calls.spread import Want
from batchmill.producer.protocol.replies import ReleaseCause
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.settings import WorkerSettings

from .active_job import Release
from .active_jobs import ActiveJobs
from .fair_part import OutputShare, num_due, select_jobs
from .intake_gate import IntakeGate
from .record_writer import RecordWriter
from .throughput import BusySpeed

_log = structlog.stdlib.get_logger("batchmill.takeover")
#: Seconds between two looks.
LOOK_INTERVAL_S = 1.0
#: Milliseconds for which a wish counts: a worker that is gone is asked no longer than this.
_WANT_TTL_MS = 3000
#: Seconds after its last wish within which jobs may still be handed to a worker.
_GIVING_S = 10.0


class Takeover:
    """Asks for jobs while this worker has room, and gives some of its own to others that ask.

    A worker whose queues are empty notes in Redis that it has room. Workers that are more than
    twice as loaded find that wish and hand some jobs over: as in a drain, the engine stops them,
    their last tokens are written, and they are announced again, but to the asking worker only. So
    no token is lost, no attempt is charged, and the giver does not take them back itself.

    Source: docs/decisions/0028-takeover.md. One thread calls `look`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        link: EngineLink,
        jobs: ActiveJobs,
        gate: IntakeGate,
        writer: RecordWriter,
        speed: BusySpeed,
        *,
        session: str,
        consumes_all: Callable[[], bool],
        share: OutputShare,
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: holds the wishes.
            link: to the engine.
            jobs: the active jobs.
            gate: of the worker.
            writer: gives jobs back.
            speed: of the engine with full batches.
            session: this run of the worker.
            consumes_all: whether the worker takes jobs from all queues of its model.
            share: of `max_tokens` that jobs use.
        """
        self._settings = settings
        self._store = store
        self._link = link
        self._jobs = jobs
        self._gate = gate
        self._writer = writer
        self._speed = speed
        self._session = session
        self._consumes_all = consumes_all
        self._share = share
        self._may_be_given_until = 0.0

    def look(self) -> None:
        """Ask for jobs if there is room, and give some to a worker that asks.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        if not self._settings.takeover:
            return
        ready = self._link.ready
        if ready is None or not self._gate.is_open() or not self._consumes_all():
            self.stop_asking()
        else:
            num_places = self._settings.engine_config.max_num_seqs - len(self._jobs)
            self._may_be_given_until = time.monotonic() + _GIVING_S
            self._want(max(0, num_places), self._matching(ready.identity))
        if ready is not None:
            self._offer(self._matching(ready.identity))

    def stop_asking(self) -> None:
        """Stop asking; what was handed over and not taken goes to any worker.

        Call it again now and then: a worker that has found the wish may hand jobs over later.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        if time.monotonic() < self._may_be_given_until:
            self._want(0, "")

    @property
    def handed_lists(self) -> list[str]:
        """Names of the lists with announcements for this worker alone, if it may take any."""
        return [keys.handed(self._session)] if self._gate.is_open() else []

    def _matching(self, identity: str) -> str:
        """Return what two workers must share to move jobs: the engine, and the encryption keys."""
        return " ".join((identity, *sorted(self._store.reads)))

    def _want(self, num_places: int, identity: str) -> None:
        settings = self._settings
        call = calls.want(
            self._load(num_places),
            model=settings.served_name,
            identity=identity,
            queues=settings.queues,
            ttl_ms=_WANT_TTL_MS,
        )
        self._store.run(call)

    def _load(self, num_places: int) -> Want:
        speed = self._speed.tokens_per_s or 0.0
        return Want(self._session, num_places, len(self._jobs), speed)

    def _offer(self, identity: str) -> None:
        jobs = self._jobs.snapshot()
        if len(jobs) < 2 or any(job.leaving is not None for job in jobs):
            return
        select = partial(
            select_jobs, num_waiting=self._link.load.num_waiting, output_share=self._share.mean
        )
        origins = list(dict.fromkeys(job.origin for job in select(jobs, len(jobs))))
        if not origins:
            return
        model = self._settings.served_name
        found = self._store.run(
            calls.take_want(self._load(0), model=model, identity=identity, origins=origins)
        )
        if found is None:
            return
        want, may_move = found
        due = num_due(len(jobs), self._speed.tokens_per_s, want)
        chosen = select([job for job in jobs if job.origin in may_move], due)
        if chosen:
            _log.info("jobs_handed_over", num_jobs=len(chosen), num_held=len(jobs), to=want.session)
            self._writer.begin_release(chosen, Release(ReleaseCause.MOVED, want.session))
