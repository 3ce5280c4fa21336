"""Deletes the objects that no record refers to: of forgotten, expired and never stored content."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol.calls import payloads as calls
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.metrics.worker_meter import JobMeter

_log = structlog.stdlib.get_logger("batchmill.payload_sweep")
#: Objects that are looked up, and deleted, per call.
_LIMIT = 100
#: An object that could not be deleted is tried again after this time. Deleting `_LIMIT` of them
#: takes less, even if the store is slow.
_REPEAT_MS = 120_000


def payload_sweeps(store: JobStore, meter: JobMeter) -> list[Callable[[], None]]:
    """Return the action of a thread that sweeps; nothing without an object store."""
    return [] if store.objects is None else [PayloadSweep(store, store.objects, meter).sweep]


class PayloadSweep:
    """Any number of workers may sweep at once; deleting an object twice is no error."""

    def __init__(self, store: JobStore, objects: ObjectStore, meter: JobMeter) -> None:
        """Bind to the records, to the objects that they refer to, and to what counts."""
        self._meter = meter
        self._store = store
        self._objects = objects

    def sweep(self) -> None:
        """Delete what is due.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next sweep makes up for it.
        """
        while self._sweep_some():
            pass

    def _sweep_some(self) -> bool:
        """Delete some objects; return whether more may be due, and the store deletes them."""
        num_seen, names = self._store.run(calls.take_unused(_LIMIT, repeat_ms=_REPEAT_MS))
        if names:
            gone = self._objects.delete(names)
            num_failed = len(names) - len(gone)
            self._meter.note_objects("delete", num_done=len(gone), num_failed=num_failed)
            if gone:
                self._store.run(calls.settle(gone))
                _log.info("objects_deleted", num_objects=len(gone))
            if num_failed:
                _log.warning("objects_not_deleted", num_objects=num_failed)
                return False  # a store that is away would fail for each of the others, too
        return max(num_seen, len(names)) == _LIMIT
