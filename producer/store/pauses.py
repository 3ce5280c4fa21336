"""Pausing queues, tenants and endpoints, as the operator does it.

A pause is kept in Redis: it applies at once, for all producers, workers and deliverers, and
outlives restarts. Jobs of a paused queue or tenant wait, and running ones go on; events of a paused
endpoint wait. A deadline of a job passes all the same.
"""

from __future__ import annotations

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import pauses as calls
from batchmill.producer.protocol.outbox import endpoint_of
from batchmill.producer.protocol.pauses import Pause, PauseKind, pause_among

from .store import Store


class Pauses:
    """Pauses, resumes and lists. Owns nothing but the store it is given.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: Store) -> None:
        """Bind to a store."""
        self._store = store

    def pause(
        self, kind: PauseKind, name: str, *, by: str = "", reason: str = "", refuses: bool = False
    ) -> bool:
        """Pause a queue, tenant or endpoint; return False if it was paused already.

        Args:
            kind: what `name` names.
            name: of a queue (`keys.queue_name`), a tenant, or an endpoint (`endpoint_of`).
            by: who pauses it, and
            reason: why; for people, and replaced if it was paused already.
            refuses: new jobs are refused (`QueuePaused`) instead of waiting.
        """
        return self._store.run(calls.pause(kind, name, by=by, reason=reason, refuses=refuses))

    def resume(self, kind: PauseKind, name: str) -> bool:
        """End a pause; return False if there was none."""
        return self._store.run(calls.resume(kind, name))

    def all(self) -> list[Pause]:
        """Return all pauses, oldest first."""
        return self._store.read(calls.all_pauses())

    def of_job(self, queue: str, tenant: str) -> Pause | None:
        """Return the pause that keeps jobs of a queue and a tenant waiting; None without one."""
        return pause_among(self.all(), queue, tenant)

    def of_endpoint(self, url: str, *, tenant: str = keys.DEFAULT_TENANT) -> Pause | None:
        """Return the pause of an endpoint; None without one."""
        place = (PauseKind.ENDPOINT, endpoint_of(url, tenant))
        return next((x for x in self.all() if (x.kind, x.name) == place), None)
