"""From a delivered Celery task to a claimed job on its way to the engine."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.chat import ChatFields
from batchmill.producer.job.controls import SamplingControls
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, ClaimRefusal, JobState
from batchmill.producer.store.connection import is_servers_fault
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.outcomes import accepted_id
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.settings import WorkerSettings

from .active_jobs import ActiveJob, ActiveJobs, Limit
from .delivery import Delivery, Outcome
from .ends import failed_end
from .finishers import Finishers
from .ledger import Ledger

_log = structlog.stdlib.get_logger("batchmill.intake")
#: Fields of a job document that the engine is given.
_ENGINE_FIELDS = set(SamplingControls.model_fields)
_CHAT_FIELDS = set(ChatFields.model_fields)
#: The engine's number for each class; docs/protocol.md tells them too.
_PRIORITIES = {name: number for number, name in enumerate(keys.PRIORITIES)}
#: Waiting would not help: the server answers, and what is stored there is at fault.
_UNUSABLE = JobRejected(
    "a key of this job in Redis holds what no batchmill wrote; delete it, or choose other names",
    code="unusable_record",
)


@dataclass(frozen=True, slots=True)
class _Order:
    """What a task's arguments ask for: a job by id, or a job document."""

    job: str | Mapping[str, Any]
    version: int


class Intake:
    """Claims the jobs that deliveries announce, in Celery's event loop.

    The claim comes before the acknowledgement, so a job is announced or leased at any moment. A
    delivery whose claim Redis did not answer waits here, unacknowledged, until it does; intake is
    closed meanwhile. Not thread-safe: only the event loop's thread calls it.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        jobs: ActiveJobs,
        ledger: Ledger,
        finishers: Finishers,
        *,
        owner: str,
        read_identity: Callable[[], str | None],
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: where the records are.
            jobs: takes the claimed jobs.
            ledger: takes the jobs that fail right here.
            finishers: tell Celery.
            owner: this worker's name, in the records.
            read_identity: the engine's identity; None while there is no engine.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._ledger = ledger
        self._finishers = finishers
        self._owner = owner
        self._read_identity = read_identity
        self._parked: deque[Delivery] = deque()
        self._closed = False

    @property
    def num_parked(self) -> int:
        """Deliveries that wait for Redis, or for an engine."""
        return len(self._parked)

    def take(self, delivery: Delivery) -> bool:
        """Take a delivery on; False where it had to be parked, so that `retry_parked` is due."""
        self._parked.append(delivery)
        return self.retry_parked()

    def retry_parked(self) -> bool:
        """Try the parked deliveries again, in order; True where none is left."""
        while self._parked:
            try:
                if not self._take(self._parked[0]):
                    return False
            except RedisError as error:
                if isinstance(error, ResponseError) and not is_servers_fault(error):
                    self._fail(self._parked.popleft(), _UNUSABLE)
                    continue
                _log.warning("claim_delayed", error=type(error).__name__, reason=str(error)[:200])
                return False
            except Exception:
                # A bug, and one job's data brings it out: the event loop must survive it. If the
                # job was claimed, its lease runs out, and in the end it becomes a dead letter.
                _log.exception("intake_failed", job_id=self._parked[0].task_id)
                self._parked[0].drop()
            self._parked.popleft()
        return True

    def close(self) -> None:
        """Claim nothing more: at the worker's end, nobody would give it back."""
        self._closed = True

    def drop_parked(self) -> None:
        """Forget what is parked, at the worker's end: unacknowledged, it is delivered again."""
        self._parked.clear()

    def _take(self, delivery: Delivery) -> bool:
        identity = self._read_identity()
        if identity is None or self._closed:
            return False
        try:
            order = _read_order(delivery)
            if not isinstance(order.job, str):
                self._adopt(delivery, order)
        except JobRejected as rejection:
            self._fail(delivery, rejection)
            return True
        claim = self._store.claim(
            delivery.task_id if not isinstance(order.job, str) else order.job,
            owner=self._owner,
            lease_ms=int(self._settings.lease_s * 1000),
            identity=identity,
        )
        if isinstance(claim, ClaimRefusal):
            self._refuse(delivery, claim)
        else:
            self._start(delivery, claim)
        return True

    def _adopt(self, delivery: Delivery, order: _Order) -> None:
        """Give a job that came inside its message a record of its own.

        Raises:
            JobRejected: the document cannot be run.
        """
        assert isinstance(order.job, Mapping)
        if order.version not in keys.SUPPORTED_VERSIONS:
            raise JobRejected(
                f"v is {order.version!r}; this worker knows {keys.SUPPORTED_VERSIONS}", param="v"
            )
        job = parse_job(order.job)
        served = self._settings.served_name
        if job.model not in (None, served):
            raise JobRejected(
                f"model is {job.model!r}; the workers of this queue serve {served!r}: "
                f"send the task to {keys.queue_name(str(job.model), job.priority)}",
                param="model",
            )
        new = prepare(
            job.model_copy(update={"model": served}), self._settings, job_id=delivery.task_id
        )
        wants_result = not delivery.request.get("ignore_result")
        answer = self._store.adopt(replace(new, celery_result=wants_result))
        job_id = accepted_id(new, answer)
        if job_id != delivery.task_id:
            raise JobRejected(
                f"the idempotency key belongs to job {job_id}; read its result instead",
                code="idempotency_conflict",
                param="idempotency_key",
            )

    def _refuse(self, delivery: Delivery, why: ClaimRefusal) -> None:
        """Drop an announcement that is no news; a job of another version waits for its worker."""
        _log.info("claim_refused", job_id=delivery.task_id, why=why.value)
        if why is ClaimRefusal.EXPIRED:
            self._finishers.accept(delivery)
            self._finishers.finish(delivery, Outcome(JobState.EXPIRED))
        else:
            delivery.drop()

    def _fail(self, delivery: Delivery, rejection: JobRejected) -> None:
        """End a delivery that has no record: Celery's result is all there is."""
        _log.warning("job_rejected", job_id=delivery.task_id, code=rejection.code)
        self._finishers.accept(delivery)
        outcome = Outcome(JobState.FAILED, error=(rejection.code, str(rejection)))
        self._finishers.finish(delivery, outcome)

    def _start(self, delivery: Delivery, claim: Claim) -> None:
        if claim.celery_result:
            # The message that it came in asked for it; a renewed announcement does not.
            delivery.request["ignore_result"] = False
        job = ActiveJob(claim, AddRequest(_request_id(claim), None, None, {}), delivery)
        job.token_ids = list(claim.token_ids)
        job.num_saved = len(job.token_ids)
        job.limit = _limit(delivery, claim)
        try:
            document = parse_document(claim.document)
        except JobRejected as rejection:
            self._finishers.accept(delivery)
            self._ledger.end(job, failed_end(rejection.code, str(rejection)))
            return
        shared = self._settings.prefix_cache_shared_across_tenants
        salt = cache_salt(document, shared_across_tenants=shared)
        job.request = _request(claim, document, salt)
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
        self._finishers.accept(delivery)
        self._jobs.add(job)


def _request_id(claim: Claim) -> str:
    """Name one attempt for the engine, so that nothing of an earlier one is taken for it."""
    return f"{claim.job_id}.{claim.fence}"


def _request(claim: Claim, document: GenerationJob, cache_salt: str | None) -> AddRequest:
    return AddRequest(
        request_id=_request_id(claim),
        prompt=document.prompt,
        chat=None if document.messages is None else chat_arguments(document),
        params=document.model_dump(include=_ENGINE_FIELDS),
        resumed_token_ids=claim.token_ids,
        priority=_PRIORITIES[document.priority],
        deadline_s=_time_left_s(claim),
        cache_salt=cache_salt,
    )


def cache_salt(document: GenerationJob, *, shared_across_tenants: bool) -> str | None:
    """The engine's salt for a job: what a job takes from the prefix cache, its answer's time tells.

    Returns:
        None where neither the job nor its tenant is kept apart: jobs of no tenant share.
    """
    tenant = document.tenant
    if tenant == keys.DEFAULT_TENANT or shared_across_tenants:
        tenant = None
    if tenant is None and document.cache_salt is None:
        return None
    # As JSON, so that no salt of one tenant can be spelt as another's.
    return json.dumps([tenant, document.cache_salt])


def chat_arguments(document: GenerationJob) -> dict[str, Any]:
    """What the engine is given of a chat: no null, which a template might show."""
    return document.model_dump(include=_CHAT_FIELDS, exclude_none=True)


def _time_left_s(claim: Claim) -> float | None:
    """Seconds from the claim to the job's deadline, both on Redis' clock: ours may be wrong."""
    if claim.deadline_at_ms is None:
        return None
    return (claim.deadline_at_ms - claim.claimed_at_ms) / 1000


def _limit(delivery: Delivery, claim: Claim) -> Limit | None:
    """Return the earlier of the job's deadline and Celery's time limit for the task."""
    limits = []
    now = time.monotonic()
    left_s = _time_left_s(claim)
    if left_s is not None:
        limits.append(Limit(now + left_s, JobState.EXPIRED))
    if delivery.time_limit_s is not None:
        limits.append(Limit(now + delivery.time_limit_s, JobState.FAILED))
    return min(limits, key=lambda limit: limit.at, default=None)


def _read_order(delivery: Delivery) -> _Order:
    """Return what a task asks for.

    Raises:
        JobRejected: its arguments are not those of the task.
    """
    args, kwargs = delivery.request["args"], delivery.request["kwargs"]
    named = dict(zip(("job", "v"), args, strict=False)) | dict(kwargs)
    job, version = named.pop("job", None), named.pop("v", keys.PROTOCOL_VERSION)
    if named or len(args) > 2 or not isinstance(job, str | Mapping):
        raise JobRejected(
            f"{keys.TASK_NAME} takes `job`: a job document (an object), or the id of a stored job",
            param="job",
        )
    return _Order(job, version)
