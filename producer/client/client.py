"""The synchronous client: submit jobs and wait for them. What is stored: `job_verbs`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from batchmill.producer.broker_url import find_broker
from batchmill.producer.job.batch import BatchStatus, parse_batch
from batchmill.producer.protocol.replies import CancelAnswer
from batchmill.producer.results import JobResult, JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.batch_store import BatchEntry, BatchStore
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.outcomes import accepted_id, broker_errors
from batchmill.producer.store.read_ends import MAX_READ_AT_ONCE, EndedJob, chunks
from batchmill.producer.store.read_progress import JobProgress
from batchmill.producer.store.read_stream import StreamPiece, StreamPosition
from batchmill.producer.store.submission import prepare
from batchmill.producer.watch.many_jobs import EndWatch, TimeBudget
from batchmill.producer.watch.one_job import wait_until_ended
from batchmill.producer.watch.stream import follow

from . import batch_verbs as batch_client
from .batch_intake import BatchLine
from .batching import Batch, JobLike, OnRejected, as_job
from .job_verbs import JobVerbs, ids_of


class Job:
    """A submitted job, by its id. Holds no state: every call asks the broker."""

    __slots__ = ("_client", "id")

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> JobStatus:
        """As `Client.status`."""
        return self._client.status(self.id)

    def result(self, timeout_s: float | None = None) -> JobResult:
        """As `Client.result`."""
        return self._client.result(self.id, timeout_s)

    def stream(
        self, position: StreamPosition | None = None, *, timeout_s: float | None = None
    ) -> Iterator[StreamPiece]:
        """As `Client.stream`."""
        return self._client.stream(self.id, position, timeout_s=timeout_s)

    def progress(self) -> JobProgress:
        """As `Client.progress`."""
        return self._client.progress(self.id)

    def cancel(self) -> CancelAnswer:
        """As `Client.cancel`."""
        return self._client.cancel(self.id)

    def retry(self) -> int:
        """As `Client.retry`."""
        return self._client.retry(self.id)

    def forget(self) -> None:
        """As `Client.forget`."""
        self._client.forget(self.id)


class Client(JobVerbs):
    """Submits jobs to a broker and reads what became of them. Thread-safe.

    A process that is forked from one that has used a client opens connections of its own, so a
    module may hold a client for workers that a server forks later. What runs during the fork is
    not carried over: a stream or a wait goes on in the process that began it.

    >>> client = Client("redis://localhost:6379/0")
    >>> job = client.submit(prompt="Name three fruits.", max_tokens=32)
    >>> print(job.result(timeout_s=60).text)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        """Find the broker; nothing is sent before the first call.

        Args:
            url: `redis://`, `rediss://` or `unix://`. None takes `BATCHMILL_BROKER_URL` or,
                without it, the embedded broker of this user.
            settings: None reads the environment.

        Raises:
            BrokerUnavailable: no URL is known and no embedded broker runs.
        """
        self.settings = ProducerSettings() if settings is None else settings
        self._url = find_broker(url or self.settings.broker_url)
        self._store = JobStore.from_url(self._url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs go on."""
        self._store.close()

    def submit(self, job: JobLike | None = None, /, **fields: Any) -> Job:
        """Store and announce a job, in one atomic step, and return its handle.

        Args:
            job: a `GenerationJob` or a mapping; or give its fields by name instead.
            **fields: the fields of a `GenerationJob`.

        Raises:
            JobRejected: the job is wrong (`code`, `param`), the queue is full, or its
                idempotency key stands for other content. Nothing was stored.
            BrokerUnavailable: no answer. The job may be stored or not; submit it again with an
                idempotency key to be sure that there is one of it.
        """
        prepared = prepare(as_job(job, fields), self.settings)
        with broker_errors(self._url):
            answer = self._store.submit(prepared)
        return Job(self, accepted_id(prepared, answer))

    def submit_many(
        self,
        jobs: Iterable[JobLike],
        *,
        on_rejected: OnRejected | None = None,
        wait_when_full_s: float | None = None,
    ) -> Iterator[Job]:
        """Submit jobs in batches, and yield their handles in order.

        Works as it is read: `jobs` may be endless, and memory does not grow with it. Nothing is
        sent before the first handle is asked for; `list(client.submit_many(jobs))` sends all.

        Args:
            jobs: `GenerationJob` values or mappings.
            on_rejected: told the index and the error of each job that was refused, which then has
                no handle. None raises at the first, after the handles of those that were
                submitted with or before it.
            wait_when_full_s: where a limit on what waits is reached, try again for so long before
                the job counts as refused; each job that is taken starts the time anew. None
                refuses at once.

        Raises:
            JobRejected: as `submit`.
            BrokerUnavailable: as `submit`.
        """
        batch = Batch(self.settings, on_rejected, wait_when_full_s)
        for index, job in enumerate(jobs):
            batch.add(index, job)
            if batch.must_be_sent:
                yield from self._send(batch)
        yield from self._send(batch)

    def job(self, job_id: str) -> Job:
        """Return the handle of a job submitted earlier or elsewhere. Asks nothing."""
        return Job(self, job_id)

    def result(self, job_id: str, timeout_s: float | None = None) -> JobResult:
        """Wait for the end of a job and return its result.

        Args:
            job_id: the job.
            timeout_s: how long to wait; None waits for as long as it takes, 0 only looks.

        Raises:
            ResultTimeout: the job has not ended yet; it goes on.
            JobFailed, JobCancelled, JobExpired: it ended without a completion; `code` says why,
                `result` holds the output up to then, if there is any.
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker for half a minute.
        """
        with broker_errors(self._url):
            wait_until_ended(self._store, job_id, timeout_s)
            ended = self._store.load_ends([job_id])[0]
        return ended.result()

    def as_completed(
        self, jobs: Iterable[Job | str], *, timeout_s: float | None = None
    ) -> Iterator[EndedJob]:
        """Yield jobs as they end, in the order in which they do, each once.

        All are watched over one connection, thousands as well as one. A job that ended without a
        completion is yielded like the others: its `result()` raises.

        Args:
            jobs: handles or ids; an id that is given twice is yielded once.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they go on.
            BrokerUnavailable: no answer from the broker for half a minute.
        """
        budget = TimeBudget(timeout_s)
        watch = EndWatch(self._store)
        watch.add(ids_of(jobs))
        with broker_errors(self._url), contextlib.closing(watch):
            while len(watch):
                ended = watch.next_ended(budget.next_wait_s(len(watch)))
                for some in chunks(ended, MAX_READ_AT_ONCE):
                    yield from self._store.load_ends(some)

    def stream(
        self,
        job_id: str,
        position: StreamPosition | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Iterator[StreamPiece]:
        """Yield a job's output, text and token ids, as it is checkpointed, until it has ended.

        A worker that dies changes nothing here: the next one goes on where the last checkpoint was.

        Args:
            job_id: the job.
            position: of the last piece that was read, to go on after it; None begins at the start.
            timeout_s: how long to wait for the end; None waits as long as it takes.

        Raises:
            JobFailed, JobCancelled, JobExpired: after the last piece, where there is no completion.
            OutputRestarted: a worker with another model started it over.
            ResultTimeout: it has not ended; it goes on.
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker for half a minute.
        """
        with broker_errors(self._url):
            yield from follow(self._store, job_id, position, timeout_s)

    def create_batch(
        self,
        jobs: Iterable[BatchLine],
        /,
        *,
        on_rejected: OnRejected | None = None,
        **fields: Any,
    ) -> BatchStatus:
        """Submit jobs that are told of as one: with one state, counts and one webhook at the end.

        Works through `jobs` in constant memory, waits while a queue is full, and returns when all
        are submitted. Given again with the same `idempotency_key` after any interruption, it
        goes on with the same batch: what was submitted is found again.

        Args:
            jobs: `GenerationJob` values, mappings (with a `custom_id` too), or lines of
                a bulk file.
            on_rejected: told the index and the error of each job that was refused, which counts as
                failed. None fails the batch at the first: what is submitted by then is cancelled.
            **fields: the fields of a `BatchRequest`: `webhook`, `webhook_events_filter`,
                `webhook_secret`, `metadata`, `ttl_s`, `idempotency_key`.

        Raises:
            JobRejected: a field or a job is wrong, or the batch was cancelled meanwhile.
            IdempotencyConflict: the key stands for another batch.
            BrokerUnavailable: no answer; with an `idempotency_key` the same call goes on.
        """
        request = parse_batch(fields)
        with broker_errors(self._url):
            return batch_client.create_batch(self._store, self.settings, jobs, request, on_rejected)

    def batch(self, batch_id: str) -> BatchStatus:
        """Return where a batch is.

        Raises:
            UnknownBatch: there is none of this id.
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url):
            return batch_client.status_of(self._store, batch_id)

    def batches(self, limit: int = 100) -> list[BatchStatus]:
        """Return the newest batches, newest first.

        Raises:
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url):
            return BatchStore(self._store).newest(limit)

    def cancel_batch(self, batch_id: str) -> BatchStatus:
        """Cancel the jobs of a batch that have not ended; running ones stop at a checkpoint.

        Returns:
            Where it is then: `cancelling` until the running ones have stopped, or how it had
            ended before.

        Raises:
            UnknownBatch: there is none of this id.
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url):
            return batch_client.cancel_batch(self._store, batch_id)

    def batch_results(
        self, batch_id: str, *, timeout_s: float | None = None
    ) -> Iterator[BatchEntry]:
        """Yield the lines of a batch in the order of the input, waiting for the end of each.

        Begins when all lines are in, and works in constant memory. Lines that were refused when the
        batch was created have no job and are not among them.

        Args:
            batch_id: the batch.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they go on.
            UnknownBatch: there is none of this id.
            BrokerUnavailable: no answer from the broker for half a minute.
        """
        with broker_errors(self._url):
            yield from batch_client.batch_results(self._store, batch_id, timeout_s)

    def _send(self, batch: Batch) -> Iterator[Job]:
        pause_s: float | None = 0.0
        while pause_s is not None:
            time.sleep(pause_s)
            with broker_errors(self._url):
                answers = self._store.run_all(batch.calls())
            pause_s = batch.note(answers)
        for job_id in batch.take_ids():
            yield Job(self, job_id)
        batch.check()
