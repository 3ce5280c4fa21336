"""Lets a full worker take a few jobs of the class `high`, which its engine runs before others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchmill.producer.protocol import reads
from batchmill.producer.store.job_store import JobStore

from .intake_gate import IntakeGate

#: Seconds between two looks at the queue while the worker is full.
LOOK_INTERVAL_S = 0.25


class HighIntake:
    """Decides which queues a worker asks: all while its gate is open, the first one if it is full.

    A job of the class `high` would otherwise wait until another job ends. No place is kept empty
    for it: the worker takes it beyond its places, and the engine preempts a job of a lower class.
    A thread checks whether such a job waits, so a full worker asks its queue only then; a request
    that waits for a job would keep it from asking the other queues as soon as there is room.
    """

    def __init__(
        self,
        store: JobStore,
        gate: IntakeGate,
        *,
        queue: str,
        num_places: int,
        on_room: Callable[[], None],
    ) -> None:
        """Bind to the gate.

        Args:
            store: holds the queues.
            gate: of the worker.
            queue: of the class `high`.
            num_places: jobs that the worker takes from it beyond its places.
            on_room: wakes the event loop.
        """
        self._store = store
        self._gate = gate
        self._queue = queue
        self._num_places = num_places
        self._on_room = on_room
        self._does_job_wait = False

    def look(self) -> None:
        """Note whether a job waits for a worker that is full.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        if self._gate.is_open() or not self._gate.has_extra_place(self._num_places):
            return
        [depth] = self._store.read(reads.queue_depths([self._queue]))
        if depth.announcements:
            self._does_job_wait = True
            self._on_room()

    def may_ask(self) -> bool:
        """Return whether to ask any queue for another job. Called in the event loop only."""
        if self._gate.may_ask():
            return True
        return self._does_job_wait and self._gate.has_extra_place(self._num_places)

    def select(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues that are to be asked now. Called in the event loop only."""
        if self._gate.is_open():
            return list(queues)
        self._does_job_wait = False
        return [queue for queue in queues if queue == self._queue]
