"""Moves jobs from busy workers to workers that have room, once nothing waits in the queues."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

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
from .fair_part import Candidate, OutputShare, list_candidates, num_due, speedup_of
from .fleet_turns import FleetTurns
from .intake_gate import IntakeGate
from .record_writer import RecordWriter
from .throughput import BusySpeed

_log = structlog.stdlib.get_logger("batchmill.takeover")
#: Seconds between two looks in a small fleet: near the end of a queue, a fast worker is idle until
#: then. Those of a larger fleet look more rarely, but each at least once per `_MOST_INTERVAL_S`.
LOOK_INTERVAL_S = 0.25
_MOST_INTERVAL_S = 1.0
#: Milliseconds for which a wish counts: a worker that is gone is asked no longer than this.
_WANT_TTL_MS = 3000
#: Seconds after which a wish that says the same is written again.
_REPEAT_S = 1.0
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
        turns: FleetTurns,
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
            turns: how many workers there are.
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
        self._turn = turns.turn(LOOK_INTERVAL_S, most_s=_MOST_INTERVAL_S)
        self._may_be_given_until = 0.0
        #: What the last wish said, if Redis has noted it, and when.
        self._noted: tuple[Want, str] | None = None
        self._noted_at = 0.0

    def look(self) -> None:
        """Ask for jobs if there is room, and give some to a worker that asks.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        if not self._settings.takeover or not self._turn.is_due():
            return
        ready = self._link.ready
        if ready is None or not self._gate.is_open() or not self._consumes_all():
            self._stop_asking(self._repeat_want)
        else:
            num_places = self._settings.engine_config.max_num_seqs - len(self._jobs)
            self._may_be_given_until = time.monotonic() + _GIVING_S
            self._repeat_want(max(0, num_places), self._matching(ready.identity))
        if ready is not None:
            self._offer(self._matching(ready.identity))

    def stop_asking(self) -> None:
        """Stop asking; what was handed over and not taken goes to any worker.

        Call it again now and then: a worker that has found the wish may hand jobs over later.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        self._stop_asking(self._want)

    @property
    def handed_lists(self) -> list[str]:
        """Names of the lists with announcements for this worker alone, if it may take any."""
        return [keys.handed(self._session)] if self._gate.is_open() else []

    def _matching(self, identity: str) -> str:
        """Return what two workers must share to move jobs: the engine, and the encryption keys."""
        return " ".join((identity, *sorted(self._store.reads)))

    def _stop_asking(self, want: Callable[[int, str], None]) -> None:
        if time.monotonic() < self._may_be_given_until:
            want(0, "")

    def _repeat_want(self, num_places: int, identity: str) -> None:
        """Write the wish if it says something new, was not noted, or is a second old."""
        is_old = time.monotonic() - self._noted_at >= _REPEAT_S
        if is_old or self._noted != (self._load(num_places), identity):
            self._want(num_places, identity)

    def _want(self, num_places: int, identity: str) -> None:
        settings, load = self._settings, self._load(num_places)
        call = calls.want(
            load,
            model=settings.served_name,
            identity=identity,
            queues=settings.queues,
            ttl_ms=_WANT_TTL_MS,
        )
        is_noted = self._store.run(call) or num_places == 0
        self._noted, self._noted_at = (load, identity) if is_noted else None, time.monotonic()

    def _load(self, num_places: int) -> Want:
        speed = self._speed.tokens_per_s or 0.0
        return Want(self._session, num_places, len(self._jobs), speed)

    def _offer(self, identity: str) -> None:
        jobs = self._jobs.snapshot()
        if len(jobs) < 2 or any(job.leaving is not None for job in jobs):
            return
        candidates = list_candidates(
            jobs, num_waiting=self._link.load.num_waiting, output_share=self._share.mean
        )
        if candidates:
            self._give(candidates, len(jobs), identity)

    def _give(self, candidates: Sequence[Candidate], num_held: int, identity: str) -> None:
        """Look for a worker that asks, and hand it what is due to it."""
        origins = list(dict.fromkeys(each.job.origin for each in candidates))
        call = calls.take_want(
            self._load(0),
            model=self._settings.served_name,
            identity=identity,
            origins=origins,
            least_speedup=min(each.least_speedup for each in candidates),
        )
        found = self._store.run(call)
        if found is None:
            return
        want, may_move = found
        speedup = speedup_of(want, self._speed.tokens_per_s)
        fitting = [
            each.job
            for each in candidates
            if each.least_speedup <= max(1.0, speedup) and each.job.origin in may_move
        ]
        chosen = fitting[: num_due(num_held, speedup, want)]
        if chosen:
            _log.info("jobs_handed_over", num_jobs=len(chosen), num_held=num_held, to=want.session)
            self._writer.begin_release(chosen, Release(ReleaseCause.MOVED, want.session))
