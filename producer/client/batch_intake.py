"""The lines of a batch (`create_batch`) on their way to the broker, in groups. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from batchmill.producer.errors import BatchClosed, IdempotencyConflict, JobRejected, QueueFull
from batchmill.producer.job.batch import BatchError
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.job_fields import JobFields
from batchmill.producer.job.line import BulkLine, LineKind, check_custom_id
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.calls.new_job import BatchPlace, NewJob
from batchmill.producer.protocol.replies import SubmitReply
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.shard_list import tagged_like
from batchmill.producer.store.batch_calls import OpenBatch
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.submission import fingerprint, prepare
from batchmill.producer.tracing.sending import with_create_span

from .job_groups import MAX_GROUP_BYTES, MAX_GROUP_JOBS, JobLike, OnRejected, as_job


class LineFields(JobFields, total=False):
    """The fields of a line: those of its job, and the caller's name for it."""

    custom_id: str | None
    """Your name for the line, in the results of the batch."""


#: A line as callers give it. Lines of files are mappings of which a type checker knows nothing.
BatchLine: TypeAlias = JobLike | LineFields | Mapping[str, Any] | BulkLine


class BatchIntake:
    """Numbers and checks the lines, and keeps those that find a full queue for another try.

    Invariant: every line so far waits here, is a job of the batch, or was rejected.
    """

    def __init__(
        self,
        batch: OpenBatch,
        settings: ProducerSettings,
        *,
        on_rejected: OnRejected | None,
        is_resumable: bool,
        default_tenant: str | None = None,
    ) -> None:
        """Begin at the first line.

        Args:
            batch: the batch.
            settings: for the default model, limits and times to live.
            on_rejected: called for each rejected line; None fails the batch at the first.
            is_resumable: it has an idempotency key, so a repeated line is compared.
            default_tenant: of lines that name none.
        """
        self._batch = batch
        self._settings = settings
        self._on_rejected = on_rejected
        self._is_resumable = is_resumable
        self._default_tenant = default_tenant
        self._waiting: deque[NewJob] = deque()
        self._num_bytes = 0
        #: Lines so far.
        self.num_lines = 0
        #: The rejection that fails the batch, and its line.
        self.rejection: JobRejected | None = None
        self.rejected_line = 0

    def add(self, line: BatchLine) -> None:
        """Check a line and keep it, or note its rejection."""
        index = self.num_lines
        self.num_lines += 1
        try:
            job, custom_id = _job_of(line)
            prepared = self._prepare(job, custom_id, index)
            if isinstance(line, BulkLine):
                prepared = replace(prepared, gateway=line.gateway)
        except JobRejected as error:
            self._reject(index, error, _name_of(line))
            return
        self._waiting.append(prepared)
        self._num_bytes += prepared.num_bytes

    @property
    def must_be_sent(self) -> bool:
        """Whether the lines fill one round trip, or a rejection ends the batch."""
        return (
            len(self._waiting) >= MAX_GROUP_JOBS
            or self._num_bytes >= MAX_GROUP_BYTES
            or self.rejection is not None
        )

    @property
    def is_empty(self) -> bool:
        """Whether no line waits."""
        return not self._waiting

    def calls(self) -> list[Call[SubmitReply]]:
        """Return the script calls that submit the waiting lines."""
        return [job_calls.submit(job) for job in self._waiting]

    def take(self, replies: Sequence[SubmitReply]) -> bool:
        """Take the replies to `calls`; return False if the queue was full for some lines."""
        sent = list(zip(self._waiting, replies, strict=True))
        self._waiting.clear()
        for job, reply in sent:
            try:
                accepted_id(job, reply)
            except QueueFull:
                self._waiting.append(job)
            except JobRejected as error:
                assert job.batch is not None
                self._reject(job.batch.index, error, job.batch.custom_id or None)
        self._num_bytes = sum(job.num_bytes for job in self._waiting)
        return not self._waiting

    def check(self) -> None:
        """Raise the rejection that fails the batch, if there is one.

        Raises:
            JobRejected: of the first line that was rejected.
        """
        if self.rejection is not None:
            raise self.rejection

    def _prepare(self, job: GenerationJob, custom_id: str, index: int) -> NewJob:
        if job.idempotency_key is not None:
            raise JobRejected(
                "idempotency_key: give one to the batch, which knows its lines by their places; "
                "leave it out of the line",
                param="idempotency_key",
            )
        if job.tenant is None and self._default_tenant is not None:
            job = job.model_copy(update={"tenant": self._default_tenant})
        prepared = prepare(job, self._settings)
        kind = LineKind.of_fields(job.model_fields_set)
        moments = (prepared.deadline_at_ms, self._batch.deadline_at_ms)
        line = replace(
            prepared,
            job_id=tagged_like(prepared.job_id, self._batch.batch_id),
            traceparent=prepared.traceparent or self._batch.traceparent,
            deadline_at_ms=min((moment for moment in moments if moment is not None), default=None),
            fingerprint=fingerprint(job) if self._is_resumable else "",
            batch=BatchPlace(self._batch.batch_id, index, custom_id, kind.value),
        )
        return with_create_span(line, self._settings)

    def _reject(self, index: int, error: JobRejected, custom_id: str | None) -> None:
        error.custom_id = custom_id
        # If the batch is closed, the line is not at fault.
        if self._on_rejected is not None and not isinstance(error, BatchClosed):
            self._on_rejected(index, error)
        elif self.rejection is None:
            error.add_note(f"line {index + 1} of {self._batch.batch_id}")
            self.rejection, self.rejected_line = error, index + 1


def fails_batch(intake: BatchIntake, error: Exception, *, is_resumable: bool) -> bool:
    """Return whether an error fails a batch: not if it has ended or can be resumed."""
    if isinstance(error, BatchClosed | IdempotencyConflict):
        return False
    return error is intake.rejection or not is_resumable


def batch_error(intake: BatchIntake, error: BaseException) -> BatchError:
    """Return the error of a batch whose lines cannot all be submitted."""
    if isinstance(error, JobRejected) and error is intake.rejection:
        return BatchError(
            code=error.code, message=str(error), line=intake.rejected_line, param=error.param
        )
    # Only the kind: the message of the caller's own error may hold text of a prompt.
    return BatchError(code="input_failed", message=f"the input failed with {type(error).__name__}")


def tenant_of(line: BatchLine | None) -> str | None:
    """Return the tenant that a line names, without a check of the line; None if it names none."""
    job = line.job if isinstance(line, BulkLine) else line
    if isinstance(job, GenerationJob):
        return job.tenant
    name = job.get("tenant") if isinstance(job, Mapping) else None
    return name if isinstance(name, str) and keys.is_tenant_name(name) else None


def _name_of(line: BatchLine) -> str | None:
    """Return the caller's name for a line, if it can be one."""
    try:
        if isinstance(line, BulkLine):
            return line.custom_id
        name = line.get("custom_id") if isinstance(line, Mapping) else None
        return None if name is None else check_custom_id(name)
    except JobRejected:
        return None


def _job_of(line: BatchLine) -> tuple[GenerationJob, str]:
    """Return the job of a line and the caller's name for it."""
    if isinstance(line, BulkLine):
        if line.job is None:
            raise line.problem or JobRejected("the line has no job")
        return line.job, line.custom_id
    if not isinstance(line, Mapping):
        return as_job(line, {}), ""
    fields: dict[str, Any] = dict(line)
    custom_id = fields.pop("custom_id", None)
    return as_job(fields, {}), "" if custom_id is None else check_custom_id(custom_id)
