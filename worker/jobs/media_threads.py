"""Threads that fetch and decode the pictures and sounds of jobs before they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError, JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.worker.media.errors import MediaError
from batchmill.worker.media.reader import MediaOwner, MediaReader

from .active_job import ActiveJob
from .lazy_threads import LazyThreads

_log = structlog.stdlib.get_logger("batchmill.media_threads")
#: Jobs whose media are prepared at once. The gate closes when so many wait.
NUM_THREADS = 4
#: Calls with a job, or with why it cannot run.
Take = Callable[[ActiveJob, JobRejected | None], None]


class MediaThreads:
    """A few threads that prepare media. They start with the first job that has any.

    A job is in no table meanwhile, but its lease is renewed (`jobs`). If a worker dies, another one
    prepares its media again, from the same bytes.
    """

    def __init__(self, reader: MediaReader) -> None:
        """Bind to what reads media, without starting a thread."""
        self._reader = reader
        self._lock = threading.Lock()
        self._jobs: set[ActiveJob] = set()
        self._threads = LazyThreads("media", NUM_THREADS, failure="media_failed")

    @property
    def is_full(self) -> bool:
        """Whether every thread may be preparing a job."""
        return len(self._jobs) >= NUM_THREADS

    def prepare(self, job: ActiveJob, document: GenerationJob, take: Take) -> None:
        """Put a job's media into its request, and pass it on."""
        with self._lock:
            self._jobs.add(job)
        self._threads.put(lambda: self._prepare(job, document, take))

    def jobs(self) -> list[ActiveJob]:
        """Return the jobs whose media are not prepared yet."""
        with self._lock:
            return list(self._jobs)

    def abandon(self) -> list[ActiveJob]:
        """Pass none of these jobs on any more, and return them: a drain waits for no server."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
        return jobs

    def _prepare(self, job: ActiveJob, document: GenerationJob, take: Take) -> None:
        if job not in self.jobs():
            return  # abandoned before a thread was free
        claim = job.claim
        owner = MediaOwner(claim.job_id, claim.fence, job.tenant, claim.media)
        problem: JobRejected | None = None
        try:
            media = self._reader.read(owner, document.media)
            job.request = replace(job.request, media=media)
        except (MediaError, BatchmillError) as error:
            problem = JobRejected(str(error), code=error.code)
        except RedisError as error:
            _log.warning("media_not_read", **job.log_ids, reason=type(error).__name__)
            problem = JobRejected(
                "Redis did not reply while the media were read", code="internal_error"
            )
        except Exception:
            _log.exception("media_failed", **job.log_ids)
            problem = JobRejected(
                "the worker failed on the job's media; see its log", code="internal_error"
            )
        finally:
            with self._lock:  # first: `take` may ask for room
                is_wanted = job in self._jobs
                self._jobs.discard(job)
        if is_wanted:
            take(job, problem)
