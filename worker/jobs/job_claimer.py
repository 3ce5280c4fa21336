"""Claims: from a delivered Celery task to a leased job on its way to the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, ClaimRefusal, JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.settings import WorkerSettings

from .active_job import ActiveJob
from .active_jobs import ActiveJobs
from .engine_request import cache_salt, engine_request, request_id, time_limit
from .job_end import failed_end
from .outcome import Outcome, TaskHandle
from .outcome_reporter import OutcomeReporter
from .record_writer import RecordWriter
from .unusable_record import is_unusable_record, unusable_record_error

_log = structlog.stdlib.get_logger("batchmill.job_claimer")


@dataclass(frozen=True, slots=True)
class _TaskArguments:
    """The arguments of a task: the id of a stored job, or a whole job document."""

    job: str | Mapping[str, Any]
    version: int


@dataclass(frozen=True, slots=True)
class _ParkedTask:
    """A task whose claim has had no reply yet."""

    task: TaskHandle
    #: The same at every try: a claim that was made, but whose reply was lost, is found again.
    nonce: str


class JobClaimer:
    """Claims the jobs that Celery tasks announce, in Celery's event loop.

    The claim comes before the acknowledgement, so a job is announced or leased at any moment. If
    Redis does not reply to a claim, the task is parked here, unacknowledged, until it does; the
    intake gate is closed meanwhile. Not thread-safe: only the event loop's thread calls it.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        jobs: ActiveJobs,
        writer: RecordWriter,
        reporter: OutcomeReporter,
        *,
        owner: str,
        read_identity: Callable[[], str | None],
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: holds the records.
            jobs: takes the claimed jobs.
            writer: takes the jobs that fail before they reach the engine.
            reporter: reports to Celery.
            owner: this worker's name, in the records.
            read_identity: the engine's identity; None while there is no engine.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._writer = writer
        self._reporter = reporter
        self._owner = owner
        self._read_identity = read_identity
        self._parked: deque[_ParkedTask] = deque()
        self._closed = False

    @property
    def num_parked(self) -> int:
        """Tasks that wait for Redis or for an engine."""
        return len(self._parked)

    def claim(self, task: TaskHandle) -> bool:
        """Claim a task's job; return False if the task was parked, so `retry_parked` is due."""
        self._parked.append(_ParkedTask(task, keys.new_claim_nonce()))
        return self.retry_parked()

    def retry_parked(self) -> bool:
        """Try the parked tasks again, in order; return True if none is left."""
        while self._parked:
            try:
                if not self._try_claim(self._parked[0]):
                    return False
            except RedisError as error:
                if is_unusable_record(error):
                    self._fail(self._parked.popleft().task, unusable_record_error())
                    continue
                _log.warning("claim_delayed", error=type(error).__name__, reason=str(error)[:200])
                return False
            except Exception:
                # A bug that one job's data triggers; the event loop must survive it. If the job was
                # claimed, its lease runs out, and in the end it becomes a dead letter.
                _log.exception("intake_failed", job_id=self._parked[0].task.task_id)
                self._parked[0].task.drop()
            self._parked.popleft()
        return True

    def close(self) -> None:
        """Claim nothing more: after the drain, no thread would give the job back."""
        self._closed = True

    def drop_parked(self) -> None:
        """Forget the parked tasks at shutdown; they are unacknowledged, so they come again."""
        self._parked.clear()

    def _try_claim(self, parked: _ParkedTask) -> bool:
        task = parked.task
        identity = self._read_identity()
        if identity is None or self._closed:
            return False
        try:
            arguments = _read_arguments(task)
            if not isinstance(arguments.job, str):
                self._adopt(task, arguments)
        except JobRejected as rejection:
            self._fail(task, rejection)
            return True
        claim = self._store.claim(
            task.task_id if not isinstance(arguments.job, str) else arguments.job,
            owner=self._owner,
            lease_ms=int(self._settings.lease_s * 1000),
            identity=identity,
            nonce=parked.nonce,
        )
        if isinstance(claim, ClaimRefusal):
            self._on_refused(task, claim)
        else:
            self._start_job(task, claim)
        return True

    def _adopt(self, task: TaskHandle, arguments: _TaskArguments) -> None:
        """Create the record of a job that came inside its message.

        Raises:
            JobRejected: the document cannot be run.
        """
        assert isinstance(arguments.job, Mapping)
        if arguments.version not in keys.SUPPORTED_VERSIONS:
            raise JobRejected(
                f"v is {arguments.version!r}; this worker supports {keys.SUPPORTED_VERSIONS}",
                param="v",
            )
        job = parse_job(arguments.job)
        served = self._settings.served_name
        if job.model not in (None, served):
            raise JobRejected(
                f"model is {job.model!r}; the workers of this queue serve {served!r}: "
                f"send the task to {keys.queue_name(str(job.model), job.priority)}",
                param="model",
            )
        job = job.model_copy(update={"model": served})
        new = prepare(job, self._settings, job_id=task.task_id)
        new = replace(new, celery_result=not task.request.get("ignore_result"))
        if (workflow := task.workflow) is not None:
            new = replace(new, celery_headers=workflow.headers, celery_embed=workflow.embed)
        if task.not_before_ms is not None:
            new = replace(new, not_before_ms=max(task.not_before_ms, new.not_before_ms or 0))
        if task.expires_ms is not None:
            deadline_ms = min(task.expires_ms, new.deadline_at_ms or task.expires_ms)
            new = replace(new, deadline_at_ms=deadline_ms)
        reply = self._store.adopt(new)
        job_id = accepted_id(new, reply)
        if job_id != task.task_id:
            raise JobRejected(
                f"the idempotency key belongs to job {job_id}; read its result instead",
                code="idempotency_conflict",
                param="idempotency_key",
            )

    def _on_refused(self, task: TaskHandle, why: ClaimRefusal) -> None:
        """Drop an announcement that is out of date, or that is for a worker of another version."""
        _log.info("claim_refused", job_id=task.task_id, why=why.value)
        if why is ClaimRefusal.EXPIRED:
            self._reporter.accept(task)
            self._reporter.report(task, Outcome(JobState.EXPIRED))
        else:
            task.drop()

    def _fail(self, task: TaskHandle, rejection: JobRejected) -> None:
        """Fail a task that has no record: the error goes into Celery's result only."""
        _log.warning("job_rejected", job_id=task.task_id, code=rejection.code)
        self._reporter.accept(task)
        outcome = Outcome(JobState.FAILED, error=(rejection.code, str(rejection)))
        self._reporter.report(task, outcome)

    def _start_job(self, task: TaskHandle, claim: Claim) -> None:
        if claim.celery_result:
            # The job's own message asked for a Celery result; a renewed announcement does not.
            task.request["ignore_result"] = False
        job = ActiveJob(claim, AddRequest(request_id(claim), None, None, {}), task)
        job.token_ids = list(claim.token_ids)
        job.num_saved = len(job.token_ids)
        job.limit = time_limit(claim, task.time_limit_s)
        try:
            document = parse_document(claim.document)
        except JobRejected as rejection:
            self._reporter.accept(task)
            self._writer.end(job, failed_end(rejection.code, str(rejection)))
            return
        shared = self._settings.prefix_cache_shared_across_tenants
        salt = cache_salt(document, shared_across_tenants=shared)
        job.request = engine_request(claim, document, salt)
        job.metadata = document.metadata
        job.tenant = document.tenant or keys.DEFAULT_TENANT
        job.tags = document.tags
        _log.debug(
            "job_claimed",
            job_id=claim.job_id,
            attempt=claim.attempts,
            num_resumed_tokens=len(claim.token_ids),
            alone=claim.alone,
        )
        self._reporter.accept(task)
        self._jobs.add(job)


def _read_arguments(task: TaskHandle) -> _TaskArguments:
    """Return the arguments of a task.

    Raises:
        JobRejected: they are not what `batchmill.generate` takes.
    """
    args, kwargs = task.request["args"], task.request["kwargs"]
    named = dict(zip(("job", "v"), args, strict=False)) | dict(kwargs)
    job, version = named.pop("job", None), named.pop("v", keys.PROTOCOL_VERSION)
    if named or len(args) > 2 or not isinstance(job, str | Mapping):
        raise JobRejected(
            f"{keys.TASK_NAME} takes `job`: a job document (an object), or the id of a stored job",
            param="job",
        )
    return _TaskArguments(job, version)
