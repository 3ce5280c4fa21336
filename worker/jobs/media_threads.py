"""Threads that fetch and decode the pictures and sounds of jobs before they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError, JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol.media import DECODES
from batchmill.worker.media.decoder import can_decode
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

    def __init__(
        self, reader: MediaReader, model: str, read_kinds: Callable[[], Collection[str] | None]
    ) -> None:
        """Bind to what reads media, without starting a thread.

        Args:
            reader: reads and decodes media.
            model: what jobs call it, for messages.
            read_kinds: returns the kinds of media that the model takes, or None while no engine is
                ready.
        """
        self._reader = reader
        self._model = model
        self._read_kinds = read_kinds
        self._lock = threading.Lock()
        self._jobs: set[ActiveJob] = set()
        self._threads = LazyThreads("media", NUM_THREADS, failure="media_failed")

    @property
    def is_full(self) -> bool:
        """Whether every thread may be preparing a job."""
        return len(self._jobs) >= NUM_THREADS

    def abilities(self) -> list[str]:
        """Return what this worker can do, as jobs with media need it.

        Media of a kind that the model does not take need no decoder: their jobs are refused.
        """
        return [
            ability
            for kind, ability in DECODES.items()
            if can_decode(kind) or not self._is_taken(kind)
        ]

    def _is_taken(self, kind: str) -> bool:
        kinds = self._read_kinds()
        return kinds is None or kind in kinds

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
            self._check_taken(document)
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

    def _check_taken(self, document: GenerationJob) -> None:
        """Check that the model takes the media of a job, before any is fetched or decoded.

        Raises:
            JobRejected: `unsupported_parameter`: it does not.
        """
        for part in document.media:
            if not self._is_taken(part.type):
                raise JobRejected(
                    f"messages have a part of type {part.type}, and the model {self._model} takes "
                    "none: leave it out, or use a model that does",
                    code="unsupported_parameter",
                )
