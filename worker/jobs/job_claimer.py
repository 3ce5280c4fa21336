"""Claims: from a delivered Celery task to a leased job on its way to the engine."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError, ContentChanged, JobRejected
from batchmill.producer.install_hint import install_command
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import AttemptCause
from batchmill.producer.protocol.media import MEDIA_EXTRA
from batchmill.producer.protocol.payloads import is_reference
from batchmill.producer.protocol.replies import Claim, ClaimRefusal, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.reply_errors import unusable_record_error
from batchmill.producer.store.submission import check_retry
from batchmill.worker.corpora.corpus_keeper import CorpusKeeper, engine_name
from batchmill.worker.corpora.corpus_name import corpus_of
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.metrics.worker_meter import JobMeter
from batchmill.worker.settings import WorkerSettings

from .active_job import ActiveJob
from .active_jobs import ActiveJobs
from .attempt_trace import JobTraces
from .engine_request import (
    cache_salt,
    engine_request,
    reports_logprobs,
    request_id,
    time_limit,
)
from .held_prefixes import HeldPrefixes
from .job_end import failed_end, with_retry
from .media_threads import MediaThreads
from .object_threads import ObjectThreads
from .outcome import Outcome, TaskHandle
from .outcome_reporter import OutcomeReporter
from .record_writer import RecordWriter
from .retry_rules import retry_rules
from .task_facts import facts_of_job
from .unusable_record import is_unusable_record

_log = structlog.stdlib.get_logger("batchmill.job_claimer")


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
    intake gate is closed meanwhile. Not thread-safe: only the event loop's thread calls it. A job
    whose document is in an object store goes on from one of `ObjectThreads`, and one with pictures
    or sounds from one of `MediaThreads`.
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
        session: str,
        meter: JobMeter,
        read_identity: Callable[[], str | None],
        traces: JobTraces,
        objects: ObjectThreads,
        media: MediaThreads,
        on_room: Callable[[], None],
        prefixes: HeldPrefixes,
        corpora: CorpusKeeper,
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: holds the records.
            jobs: takes the claimed jobs.
            writer: takes the jobs that fail before they reach the engine.
            reporter: reports to Celery.
            owner: this worker's name, in the records.
            session: this run of the worker, in the records.
            meter: counts claims.
            read_identity: the engine's identity; None while there is no engine.
            traces: makes the traces of attempts.
            objects: reads the documents that are in an object store.
            media: prepares pictures and sounds.
            on_room: called from any thread when such a document has been read.
            prefixes: that the engine holds.
            corpora: what jobs take draft tokens from.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._writer = writer
        self._reporter = reporter
        self._owner = owner
        self._session = session
        self._meter = meter
        self._read_identity = read_identity
        self._traces = traces
        self._objects = objects
        self._media = media
        self._on_room = on_room
        self._prefixes = prefixes
        self._corpora = corpora
        self._rng = random.Random()
        self._default_rules = retry_rules(None, settings)
        self._parked: deque[_ParkedTask] = deque()
        self._closed = False

    @property
    def is_held_up(self) -> bool:
        """Whether tasks wait for Redis or for an engine, or many for documents or media."""
        return bool(self._parked) or self._objects.is_full or self._media.is_full

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
        """Claim nothing more, and give back the jobs whose media are still fetched or decoded."""
        self._closed = True  # after the drain, no thread would give a job back
        if waiting := self._media.abandon():
            self._writer.release(waiting, ReleaseCause.DRAIN)

    def drop_parked(self) -> None:
        """Forget the parked tasks at shutdown; they are unacknowledged, so they come again."""
        self._parked.clear()

    def _try_claim(self, parked: _ParkedTask) -> bool:
        task = parked.task
        identity = self._read_identity()
        if identity is None or self._closed:
            return False
        try:
            job_id = _read_job_id(task)
        except JobRejected as rejection:
            self._fail(task, rejection)
            return True
        prefixes = self._prefixes.list()
        claim = self._store.claim(
            job_id,
            owner=self._owner,
            lease_ms=int(self._settings.lease_s * 1000),
            identity=identity,
            nonce=parked.nonce,
            session=self._session,
            prefixes=prefixes,
            abilities=self._media.abilities(),
        )
        if isinstance(claim, ClaimRefusal):
            self._on_refused(task, claim)
        else:
            self._start_job(task, claim, is_held=claim.prefix in prefixes)
            self._prefixes.note_claim(claim.prefix)
        return True

    def _on_refused(self, task: TaskHandle, why: ClaimRefusal) -> None:
        """Drop an announcement that is out of date, or that is for a worker of another version."""
        _log.info("claim_refused", job_id=task.task_id, why=why.value)
        if why is ClaimRefusal.EXPIRED:
            self._reporter.accept(task)
            self._reporter.report(task, Outcome(JobState.EXPIRED, is_held=False))
            return
        if why is ClaimRefusal.NO_PAYLOAD_STORE:
            _log.warning(
                "payload_store_missing",
                job_id=task.task_id,
                remedy="the job is in an object store, and this worker has none: set "
                "BATCHMILL_PAYLOAD_URL; meanwhile the job is left to other workers",
            )
        if why is ClaimRefusal.NO_DECODER:
            _log.warning(
                "decoder_missing",
                job_id=task.task_id,
                remedy="the job has pictures or sounds, and this worker lacks packages that decode "
                f"them: {install_command(MEDIA_EXTRA)}; meanwhile the job is left to other workers",
            )
        if why is ClaimRefusal.MISSING_KEY:
            _log.warning(
                "encryption_key_missing",
                job_id=task.task_id,
                remedy="the job is sealed with a key that this worker does not have: add it to "
                "BATCHMILL_ENCRYPTION_KEYS; meanwhile the job is left to other workers",
            )
        task.drop()

    def _fail(self, task: TaskHandle, rejection: JobRejected) -> None:
        """Fail a task that has no record: the error goes into Celery's result only."""
        _log.warning("job_rejected", job_id=task.task_id, code=rejection.code)
        self._reporter.accept(task)
        outcome = Outcome(JobState.FAILED, error=(rejection.code, str(rejection)))
        self._reporter.report(task, outcome)

    def _start_job(self, task: TaskHandle, claim: Claim, *, is_held: bool) -> None:
        if claim.celery_result:
            # The job's own message asked for a Celery result; a renewed announcement does not.
            task.request["ignore_result"] = False
        waited_s = (claim.claimed_at_ms - claim.enqueued_at_ms) / 1000
        self._meter.note_claim(
            waited_s=waited_s if claim.attempts == 1 else None,
            num_resumed_tokens=len(claim.token_ids),
            is_moved=bool(claim.history) and claim.history[-1].cause == AttemptCause.MOVED,
        )
        job = ActiveJob(claim, AddRequest(request_id(claim), None, None, {}), task)
        job.claimed_for_prefix = is_held
        job.token_ids = list(claim.token_ids)
        job.num_saved = 0 if claim.must_rewrite_output else len(job.token_ids)
        job.limit = time_limit(claim, task.time_limit_s)
        job.retry_rules = self._default_rules
        if is_reference(claim.document):
            self._reporter.accept(task)  # its message does not wait for the object store
            self._objects.read_document(job, lambda found: self._take_document(job, found))
            return
        try:
            _check_readable(claim)
            document = self._parse(claim.document)
        except JobRejected as rejection:
            self._reporter.accept(task)
            self._refuse(job, rejection)
            return
        self._prepare(job, document)
        self._reporter.accept(task)
        self._run_with_media(job, document)

    def _take_document(self, job: ActiveJob, found: bytes | BatchmillError) -> None:
        """Run a job whose document was read from the object store, or end its attempt."""
        try:
            if isinstance(found, BatchmillError):
                raise JobRejected(str(found), code=found.code)
            document = self._parse(found)
        except JobRejected as rejection:
            self._refuse(job, rejection)
        else:
            self._prepare(job, document)
            self._run_with_media(job, document)
        self._on_room()

    def _parse(self, document_json: bytes) -> GenerationJob:
        """Return a job's document.

        Raises:
            JobRejected: it is invalid, or asks for more than the operator allows.
        """
        document = parse_document(document_json)
        check_retry(document.retry, self._settings)
        return document

    def _refuse(self, job: ActiveJob, rejection: JobRejected) -> None:
        """End the attempt of a job without a document; another one follows if the rules say so."""
        job.trace = self._traces.start(job.claim, None)
        self._end(job, rejection)

    def _end(self, job: ActiveJob, rejection: JobRejected) -> None:
        end = failed_end(rejection.code, str(rejection))
        self._writer.end(job, with_retry(job, end, self._rng))

    def _prepare(self, job: ActiveJob, document: GenerationJob) -> None:
        """Fill in what the document says."""
        claim = job.claim
        job.trace = self._traces.start(claim, document)
        job.task.describe(facts_of_job(document))
        self._meter.note_params(document.max_tokens, document.n)
        shared = self._settings.prefix_cache_shared_across_tenants
        salt = cache_salt(document, shared_across_tenants=shared)
        job.request = engine_request(claim, document, salt, self._use_corpus(job, document))
        job.selection = document.select
        job.reports_logprobs = reports_logprobs(document)
        if document.retry is not None:
            job.retry_rules = retry_rules(document.retry, self._settings)
        job.metadata = document.metadata
        job.tenant = document.tenant or keys.DEFAULT_TENANT
        job.queue = keys.queue_name(self._settings.served_name, document.priority)
        job.tags = document.tags
        _log.debug(
            "job_claimed",
            **job.log_ids,
            attempt=claim.attempts,
            num_resumed_tokens=len(claim.token_ids),
            alone=claim.alone,
        )

    def _use_corpus(self, job: ActiveJob, document: GenerationJob) -> str | None:
        """Return the engine's name of the corpus of a job, if it has one."""
        settings = self._settings
        corpus = corpus_of(job.claim, document, settings.draft_corpus, settings.draft_corpus_jobs)
        if corpus is None:
            return None
        if self._corpora.note_claim(corpus):
            job.corpus = corpus
        return engine_name(corpus)

    def _run_with_media(self, job: ActiveJob, document: GenerationJob) -> None:
        """Run a job; if it has pictures or sounds, once they are decoded."""
        if document.media and not self._closed:
            self._media.prepare(job, document, self._take_media)
        else:
            self._run(job)

    def _take_media(self, job: ActiveJob, problem: JobRejected | None) -> None:
        """Run a job whose media are decoded, or end its attempt."""
        if problem is None:
            self._run(job)
        else:
            self._end(job, problem)
        self._on_room()

    def _run(self, job: ActiveJob) -> None:
        # Closed: its document or its media came when the worker had given back all others.
        if self._closed or not self._jobs.add(job):
            self._writer.release([job], ReleaseCause.DRAIN)


def _check_readable(claim: Claim) -> None:
    """Check that the content of a job could be opened.

    Raises:
        JobRejected: it was changed in Redis, by whoever can write there.
    """
    if claim.unreadable is not None:
        raise JobRejected(str(claim.unreadable), code=ContentChanged.code)


def _read_job_id(task: TaskHandle) -> str:
    """Return the id of the stored job that a task announces.

    Raises:
        JobRejected: its arguments are not those of an announcement.
    """
    args, kwargs = task.request["args"], task.request["kwargs"]
    job_id = kwargs.get("job", args[0] if args else None)
    if not isinstance(job_id, str):
        raise JobRejected("an announcement must have `job`: the id of a stored job", param="job")
    return job_id
