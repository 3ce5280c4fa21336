# Generated from async_client.py by tests/structure/generate_sync.py: change that file.
"""The synchronous client: `Client` and the handle `Job`."""

from __future__ import annotations

import builtins
import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

from batchmill.producer.broker_url import find_broker, redact
from batchmill.producer.errors import BatchmillError, ResultTimeout
from batchmill.producer.job.job_fields import JobFields
from batchmill.producer.progress import JobProgress
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import CancelAnswer
from batchmill.producer.results import JobResult, JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE, EndedJob, chunks, ended_jobs
from batchmill.producer.store.job_output import StreamPiece, StreamPosition
from batchmill.producer.store.replication import replica_wait
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.shards import Shards
from batchmill.producer.tracing.sending import check_traces, send_span
from batchmill.producer.watch.fleet_watch import FleetWatch
from batchmill.producer.watch.one_job import wait_until_ended
from batchmill.producer.watch.stream import follow_output
from batchmill.producer.watch.wait_limits import OnWait, TimeBudget

from .batches import Batches
from .job_groups import JobGroup, JobLike, OnRejected, prepared_job
from .job_ids import ids_of
from .job_verbs import JobVerbs
from .kind_verbs import KindVerbs
from .media_verbs import MediaVerbs
from .operator_verbs import OperatorVerbs
from .submissions import Submissions
from .vector_verbs import VectorVerbs


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

    def result(self, timeout_s: float | None = None, *, on_wait: OnWait | None = None) -> JobResult:
        """As `Client.result`."""
        return self._client.result(self.id, timeout_s, on_wait=on_wait)

    def stream(
        self,
        position: StreamPosition | None = None,
        *,
        timeout_s: float | None = None,
        on_wait: OnWait | None = None,
    ) -> Iterator[StreamPiece]:
        """As `Client.stream`."""
        return self._client.stream(self.id, position, timeout_s=timeout_s, on_wait=on_wait)

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


class Client(
    JobVerbs,
    KindVerbs,
    Batches,
    MediaVerbs,
    OperatorVerbs,
    VectorVerbs,
):
    """Submits jobs to a broker and reads their results.

    Thread-safe. A process that is forked from one that has used a client opens connections of its
    own, so a module may hold a client for workers that a server forks later. A stream or a wait
    that runs during the fork continues only in the process that began it.

    Examples:
        >>> client = Client("redis://localhost:6379/0")
        >>> job = client.submit(prompt="Name three fruits.", max_tokens=32)
        >>> print(job.result(timeout_s=60).text)
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float | None = None,
        min_replicas: int | None = None,
        settings: ProducerSettings | None = None,
    ) -> None:
        """Find the broker; nothing is sent before the first call.

        Args:
            url: `redis://`, `rediss://`, `unix://` or `sentinel://`, or a list of shards
                (`a=redis://… b=redis://…`). None takes `BATCHMILL_BROKER_URL` or
                `BATCHMILL_BROKER_URLS` or, without them, the embedded broker of this user.
            timeout_s: seconds that a call to the broker may take in all, with connecting and
                repeats, before it raises `BrokerUnavailable`. None takes
                `settings.broker_timeout_s`. How long to wait for a job is said in each wait.
            min_replicas: replicas that must have a job, a retry or a batch before the call
                returns; otherwise it raises `NotReplicated`. None takes
                `settings.broker_min_replicas`.
            settings: None reads the environment.

        Raises:
            BrokerUnavailable: no URL is known and no embedded broker runs.
            TracesUnavailable: spans are asked for and cannot be made.
            ValueError: `timeout_s` is not a positive number of seconds, or too short for the
                replicas, or `min_replicas` is negative.
        """
        self.settings = ProducerSettings() if settings is None else settings
        check_traces(self.settings)
        self._url = find_broker(url or self.settings.broker)
        timeout_s = self.settings.broker_timeout_s if timeout_s is None else timeout_s
        self._shards = Shards.from_url(
            self._url,
            timeout_s=timeout_s,
            replica_wait=replica_wait(
                self.settings, min_replicas=min_replicas, call_timeout_s=timeout_s
            ),
            key_ring=self.settings.key_ring,
            objects=self.settings.object_store,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redact(self._url)!r})"

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
        """Close the connections. Jobs continue."""
        self._shards.close()

    def submit(self, job: JobLike | None = None, /, **fields: Unpack[JobFields]) -> Job:
        """Store and announce a job, in one atomic step, and return its handle.

        Args:
            job: the prompt, which is used as it is; or a whole job, as a `GenerationJob` or a
                mapping; or give only fields.
            **fields: the fields of a `GenerationJob` by name, such as `messages` for a chat.

        Raises:
            JobRejected: the job is invalid (`code`, `param`), the queue is full, or its
                idempotency key stands for other content. Nothing was stored.
            BrokerUnavailable: the broker does not respond. The job may be stored or not; submit it
                again with an idempotency key to be sure that there is exactly one.
            NotReplicated: the job is stored and will run, but too few replicas have it, so that a
                failover may lose it.
        """
        prepared = prepared_job(job, fields, self.settings)
        with broker_errors(self._url):
            store, prepared = self._shards.place(prepared)
        with send_span(prepared, self.settings) as traced:
            with broker_errors(self._url):
                reply = store.run_confirmed(job_calls.submit(traced))
            return Job(self, accepted_id(traced, reply))

    def submit_many(
        self,
        jobs: Iterable[JobLike],
        *,
        on_rejected: OnRejected | None = None,
        wait_when_full_s: float | None = None,
    ) -> builtins.list[Job]:
        """Submit jobs in groups, and return their handles in order, once all are submitted.

        The handles are all that is kept of the jobs; for more jobs than memory has room for, or an
        endless input, see `iter_submit`.

        Args:
            jobs: prompts, `GenerationJob` values or mappings.
            on_rejected: called with the index and the error of each rejected job, which then has
                no handle. None raises at the first, whose group is still submitted; `job_ids` of
                the error names the submitted jobs.
            wait_when_full_s: if a limit on waiting jobs is reached, keep trying for this long
                before the job counts as rejected; each accepted job restarts the time. None
                rejects at once.

        Raises:
            JobRejected: as `submit`.
            BrokerUnavailable: as `submit`; `job_ids` names the jobs that are known to be submitted.
        """
        handles: builtins.list[Job] = []
        try:
            for handle in self._submit_groups(jobs, on_rejected, wait_when_full_s):
                handles += (handle,)
        except BatchmillError as error:
            error.job_ids = tuple(ids_of([*handles, *error.job_ids]))
            raise
        return handles

    def iter_submit(
        self,
        jobs: Iterable[JobLike],
        *,
        on_rejected: OnRejected | None = None,
        wait_when_full_s: float | None = None,
    ) -> Submissions[Job]:
        """Submit jobs in groups while their handles are read, in constant memory.

        Nothing is sent before the first handle is read, and `jobs` is read at most one group
        further than the handles, so it may be endless. A warning tells if no handle is ever read.

        Args:
            jobs: as of `submit_many`.
            on_rejected: as of `submit_many`. None raises at the first rejection, after the handles
                of those that were submitted with or before it.
            wait_when_full_s: as of `submit_many`.

        Returns:
            An iterator of the handles, in order; reading it raises what `submit_many` raises.
        """
        return Submissions(self._submit_groups(jobs, on_rejected, wait_when_full_s))

    def _submit_groups(
        self,
        jobs: Iterable[JobLike],
        on_rejected: OnRejected | None,
        wait_when_full_s: float | None,
    ) -> Generator[Job, None, None]:
        group = JobGroup(self.settings, on_rejected, wait_when_full_s)
        for job in jobs:
            group.add(job)
            if group.must_be_sent:
                for handle in self._send(group):
                    yield handle
        for handle in self._send(group):
            yield handle

    def job(self, job_id: str) -> Job:
        """Return the handle of a job submitted earlier or elsewhere. Sends nothing."""
        return Job(self, job_id)

    def result(
        self, job_id: str, timeout_s: float | None = None, *, on_wait: OnWait | None = None
    ) -> JobResult:
        """Wait for the end of a job and return its result.

        Args:
            job_id: the job.
            timeout_s: how long to wait; None waits for as long as it takes, 0 does not wait.
            on_wait: called with the job's progress after five seconds of waiting, and every five
                seconds from then on; `progress.describe()` says it in words. None logs a warning
                if no worker serves the job's model.

        Raises:
            ResultTimeout: the job has not ended yet; it continues. Its `progress` says how far it
                is.
            JobFailed, JobCancelled, JobExpired: it ended without a completion; `code` says why,
                `result` holds the output so far, if there is any.
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        with broker_errors(self._url):
            store = self._shards.of_job(job_id)
            wait_until_ended(store, job_id, timeout_s, on_wait)
            ended = store.read(ended_jobs([job_id]))
        return ended[0].result()

    def as_completed(
        self, jobs: Iterable[Job | str], *, timeout_s: float | None = None
    ) -> Iterator[EndedJob]:
        """Yield each job once, in the order in which they end.

        All are watched over one connection, whether there is one job or thousands. A job that ended
        without a completion is yielded like the others: its `result()` raises.

        Args:
            jobs: handles or ids; an id that is given twice is yielded once.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they continue.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        budget = TimeBudget(timeout_s)
        watch = FleetWatch(self._shards)
        with broker_errors(self._url), contextlib.closing(watch):
            watch.add(ids_of(jobs))
            while len(watch):
                try:
                    wait_s = budget.next_wait_s(len(watch), watch.connection_error)
                except ResultTimeout as error:
                    raise watch.explained(error) from None
                with time_limit(budget.call_limit_s()):
                    ids = watch.next_ended(wait_s)
                for some in chunks(ids, MAX_ENDS_AT_ONCE):
                    yield from self._shards.read_each(some, ended_jobs)

    def stream(
        self,
        job_id: str,
        position: StreamPosition | None = None,
        *,
        timeout_s: float | None = None,
        on_wait: OnWait | None = None,
    ) -> Iterator[StreamPiece]:
        """Yield a job's output, text and token ids, as it is checkpointed, until it has ended.

        If a worker dies, the next one resumes from the last checkpoint.

        Args:
            job_id: the job.
            position: of the last piece that was read, to resume after it; None begins at the start.
            timeout_s: how long to wait for the end; None waits as long as it takes.
            on_wait: as of `result`, after five seconds without new output.

        Raises:
            JobFailed, JobCancelled, JobExpired: after the last piece, if it did not complete.
            OutputRestarted: a worker with another model started it over, or Redis lost output that
                was read before.
            InvalidQuery: the position does not belong to this output.
            ResultTimeout: it has not ended; it continues.
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        with broker_errors(self._url):
            store = self._shards.of_job(job_id)
            output = follow_output(store, job_id, position, timeout_s, on_wait)
            with contextlib.closing(output) as pieces:
                yield from pieces

    def _send(self, group: JobGroup) -> Iterator[Job]:
        pause_s: float | None = 0.0
        while pause_s is not None:
            time.sleep(pause_s)
            try:
                with broker_errors(self._url):
                    replies = self._shards.submit(group.open_jobs())
            except BatchmillError as error:
                error.job_ids = (*group.submitted_ids(), *error.job_ids)
                raise
            pause_s = group.note(replies)
        for job_id in group.take_ids():
            yield Job(self, job_id)
        group.check()
