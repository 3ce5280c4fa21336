"""Shows others that a deliverer lives, so that its events go to them at once when it does not."""

from __future__ import annotations

import contextlib

from redis.exceptions import RedisError

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs.lost_workers import put_back_jobs_of_lost_workers
from batchmill.worker.jobs.periodic_thread import PeriodicThread
from batchmill.worker.jobs.session_connection import SessionConnection

from .settings import NOTE_INTERVAL_S

_JUDGE_INTERVAL_S = 0.5
_JITTER = 0.3
#: Time for each thread to end.
_CLOSE_GRACE_S = 1.0


class DelivererSession:
    """Holds the connection of one run of a deliverer, and notices the ends of other programs.

    Deliverers judge others too, because they may run where no worker does.
    """

    def __init__(self, store: JobStore, broker_url: str, owner: str, timeout_s: float) -> None:
        """Set up the threads; nothing is sent before `start`.

        Args:
            store: the job store.
            broker_url: of the deliverer.
            owner: its name.
            timeout_s: seconds without a sign of life after which it counts as lost if Redis has no
                connection of it either.
        """
        #: This run of the deliverer.
        self.name = keys.new_session(owner)
        self._store = store
        self._timeout_ms = int(timeout_s * 1000)
        self._connection = SessionConnection(broker_url, self.name)
        self._threads = (
            PeriodicThread("session-note", self._note, NOTE_INTERVAL_S),
            PeriodicThread("lost-sessions", self._judge, _JUDGE_INTERVAL_S, jitter=_JITTER),
        )

    def start(self) -> None:
        """Start the threads; return at once."""
        self._connection.start()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads and the connection. Events that are still claimed go to others."""
        for thread in self._threads:
            thread.close(_CLOSE_GRACE_S)
        if self._connection.connected_s:
            with contextlib.suppress(RedisError):  # it counts as lost a little later
                self._store.forget_session(self.name)
        self._connection.close(_CLOSE_GRACE_S)

    def _note(self) -> None:
        if self._store.note_session(self.name, timeout_ms=self._timeout_ms) == 0:
            self._connection.reconnect()

    def _judge(self) -> None:
        put_back_jobs_of_lost_workers(self._store, self.name, self._connection)
