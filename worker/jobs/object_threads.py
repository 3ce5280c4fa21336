"""Threads that wait for the object store: documents before a job runs, results at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from batchmill.producer.errors import BatchmillError, ContentChanged, PayloadUnreachable
from batchmill.producer.protocol.content import Content, Place, UnreadableContent
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.metrics.worker_meter import JobMeter

from .active_job import ActiveJob
from .job_end import JobEnd, unstored_end, with_object
from .lazy_threads import LazyThreads

_log = structlog.stdlib.get_logger("batchmill.object_threads")
#: Jobs of a worker whose objects are read or written at once. The gate closes when so many
#: documents are being read.
NUM_THREADS = 4
#: Results that wait to be written, at which the worker claims no further job.
MAX_WAITING_RESULTS = 8 * NUM_THREADS


class ObjectThreads:
    """A few threads that read documents and write results. Idle without an object store.

    While a document or a result is here, its job is in no table. It may have to wait for others, so
    the leases of all of them are renewed (`jobs_at_store`). That ends by itself: each has a limit
    of time, and the gate is closed while many wait. If a lease runs out all the same, another
    worker has the job, and the later writes are fenced.
    """

    def __init__(
        self, store: JobStore, meter: JobMeter, *, on_room: Callable[[], None] = lambda: None
    ) -> None:
        """Bind to the parts around it, without starting a thread.

        Args:
            store: of records, which has the object store.
            meter: counts objects.
            on_room: called from any thread when few results wait again.
        """
        self._store = store
        self._meter = meter
        self._on_room = on_room
        self._reading: list[ActiveJob] = []
        self._writing: list[ActiveJob] = []
        self._lock = threading.Lock()
        self._threads = LazyThreads("objects", NUM_THREADS, failure="object_failed")

    @property
    def is_full(self) -> bool:
        """Whether every thread may be reading a document, or many results wait to be written."""
        num_reading, num_writing = len(self._reading), len(self._writing)
        return num_reading >= NUM_THREADS or num_writing >= MAX_WAITING_RESULTS

    def jobs_at_store(self) -> list[ActiveJob]:
        """Return the jobs whose documents are not read, or whose results are not written yet."""
        with self._lock:
            return [*self._reading, *self._writing]

    def read_document(self, job: ActiveJob, take: Callable[[bytes | BatchmillError], None]) -> None:
        """Read the document of a claimed job, and pass it on, or why it cannot be read."""

        def read() -> None:
            try:
                found = self._read(job)
            finally:
                with self._lock:  # first: `take` may ask for room
                    self._reading.remove(job)
            take(found)

        with self._lock:
            self._reading.append(job)
        self._threads.put(read)

    def write_result(
        self, job: ActiveJob, end: JobEnd, take: Callable[[ActiveJob, JobEnd], None]
    ) -> None:
        """Pass an end on; if its result is too large for Redis, once that is written.

        If it cannot be written, the end is a failure that may be retried, from the tokens so far.
        """
        objects = self._store.objects
        if objects is None or len(end.result or "") * 4 <= objects.threshold_bytes:
            take(job, end)  # shorter than the threshold whatever its characters are
            return

        def write() -> None:
            try:
                take(job, self._written(job, end))
            finally:
                with self._lock:
                    was_full = self.is_full
                    self._writing.remove(job)
                    has_room = was_full and not self.is_full
                if has_room:
                    self._on_room()

        with self._lock:
            self._writing.append(job)
        self._threads.put(write)

    def _read(self, job: ActiveJob) -> bytes | BatchmillError:
        place = Place(job.claim.job_id, "doc")
        try:
            found = self._store.open_object(job.claim.document, place)
        except UnreadableContent as error:
            self._meter.note_objects("read", num_failed=1)
            return error if isinstance(error, BatchmillError) else ContentChanged(str(error))
        self._meter.note_objects("read", num_done=1, num_bytes=len(found))
        return found

    def _written(self, job: ActiveJob, end: JobEnd) -> JobEnd:
        place = Place(job.claim.job_id, "result")
        try:
            reference = self._store.write_object(Content(end.result or "", place))
        except BatchmillError as error:
            _log.warning("result_not_stored", **job.log_ids, code=error.code, reason=str(error))
            self._meter.note_objects("write", num_failed=1)
            return unstored_end(end, error.code, str(error))
        except Exception as error:  # of Redis, which has not noted the object
            _log.warning("result_not_stored", **job.log_ids, reason=type(error).__name__)
            return unstored_end(end, PayloadUnreachable.code, "Redis did not note the object")
        if reference is None:
            return end
        self._meter.note_objects("write", num_done=1, num_bytes=len(end.result or ""))
        return with_object(end, reference)
