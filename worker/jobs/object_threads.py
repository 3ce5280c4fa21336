"""Threads that wait for the object store: documents before a job runs, results at its end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from batchmill.producer.errors import BatchmillError, ContentChanged, PayloadUnreachable
from batchmill.producer.protocol.content import Content, Place, UnreadableContent
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.metrics.worker_meter import JobMeter

from .active_job import ActiveJob
from .job_end import JobEnd, unstored_end, with_object

_log = structlog.stdlib.get_logger("batchmill.object_threads")
#: Jobs of a worker whose objects are read or written at once. The gate closes when so many
#: documents are being read.
NUM_THREADS = 4


class ObjectThreads:
    """A few threads that read documents and write results. Idle without an object store.

    A job is in no table meanwhile, and its lease is not renewed: `payload_timeout_s` is a part of
    it. If it runs out all the same, another worker has the job, and the later writes are fenced.
    """

    def __init__(self, store: JobStore, meter: JobMeter) -> None:
        """Bind to the store of records, which has the object store, without starting a thread."""
        self._store = store
        self._meter = meter
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_reading = 0
        self._has_started = False

    @property
    def is_full(self) -> bool:
        """Whether every thread may be reading a document."""
        return self._num_reading >= NUM_THREADS

    def read_document(self, job: ActiveJob, take: Callable[[bytes | BatchmillError], None]) -> None:
        """Read the document of a claimed job, and pass it on, or why it cannot be read."""
        self._count(1)

        def read() -> None:
            try:
                found = self._read(job)
            finally:
                self._count(-1)  # first: `take` may ask for room
            take(found)

        self._put(read)

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
        self._put(lambda: take(job, self._written(job, end)))

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

    def _put(self, action: Callable[[], None]) -> None:
        with self._lock:
            if not self._has_started:
                self._has_started = True
                for number in range(NUM_THREADS):
                    name = f"objects-{number}"
                    threading.Thread(target=self._run, name=name, daemon=True).start()
        self._queue.put(action)

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_reading += change

    def _run(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            except Exception:
                # The job's lease runs out, and another attempt follows.
                _log.exception("object_failed")
