"""The lines of a batch on their way to the broker, in groups. No input or output."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from batchmill.producer.errors import BatchClosed, IdempotencyConflict, JobRejected, QueueFull
from batchmill.producer.job.batch import BatchError
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import MAX_ID_CHARS, BulkLine, LineKind
from batchmill.producer.protocol import calls
from batchmill.producer.protocol.calls import BatchPlace, Call, NewJob
from batchmill.producer.protocol.replies import SubmitReply
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.batch_calls import OpenBatch
from batchmill.producer.store.outcomes import accepted_id
from batchmill.producer.store.submission import fingerprint, prepare

from .batching import MAX_BATCH_CHARS, MAX_BATCH_JOBS, JobLike, OnRejected, as_job

#: A line as callers give it; a mapping may hold a `custom_id`.
BatchLine: TypeAlias = JobLike | BulkLine

#: Pause before a full queue is tried again.
FULL_PAUSE_S = 0.5


class BatchIntake:
    """Numbers the lines, checks them, and keeps what a full queue does not take for another try.

    Invariant: every line so far waits here, is a job of the batch, or was refused.
    """

    def __init__(
        self,
        batch: OpenBatch,
        settings: ProducerSettings,
        *,
        on_rejected: OnRejected | None,
        is_resumable: bool,
    ) -> None:
        """Begin at the first line.

        Args:
            batch: the batch.
            settings: for the default model, limits and times to live.
            on_rejected: told of each line that was refused; None fails the batch at the first.
            is_resumable: it has an idempotency key, so a line that comes again is compared.
        """
        self._batch = batch
        self._settings = settings
        self._on_rejected = on_rejected
        self._is_resumable = is_resumable
        self._waiting: deque[NewJob] = deque()
        self._num_chars = 0
        #: Lines so far.
        self.num_lines = 0
        #: What fails the batch, and which line it was.
        self.refusal: JobRejected | None = None
        self.refused_line = 0

    def add(self, line: BatchLine) -> None:
        """Check a line and keep it, or note its refusal."""
        index = self.num_lines
        self.num_lines += 1
        try:
            job, custom_id = _job_of(line)
            prepared = self._prepare(job, custom_id, index)
        except JobRejected as error:
            self._reject(index, error)
            return
        self._waiting.append(prepared)
        self._num_chars += len(prepared.document)

    @property
    def must_be_sent(self) -> bool:
        """Whether as much waits as one round trip takes, or a refusal ends it."""
        return (
            len(self._waiting) >= MAX_BATCH_JOBS
            or self._num_chars >= MAX_BATCH_CHARS
            or self.refusal is not None
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def calls(self) -> list[Call[SubmitReply]]:
        """Return the script calls that submit what waits."""
        return [calls.submit(job) for job in self._waiting]

    def take(self, answers: Sequence[SubmitReply]) -> bool:
        """Read the answers to `calls`; False where the queue was full, and some still waits."""
        sent = list(zip(self._waiting, answers, strict=True))
        self._waiting.clear()
        for job, answer in sent:
            try:
                accepted_id(job, answer)
            except QueueFull:
                self._waiting.append(job)
            except JobRejected as error:
                assert job.batch is not None
                self._reject(job.batch.index, error)
        self._num_chars = sum(len(job.document) for job in self._waiting)
        return not self._waiting

    def check(self) -> None:
        """Raise the refusal that fails the batch, if there is one.

        Raises:
            JobRejected: of the first line that was refused.
        """
        if self.refusal is not None:
            raise self.refusal

    def _prepare(self, job: GenerationJob, custom_id: str, index: int) -> NewJob:
        if job.idempotency_key is not None:
            raise JobRejected(
                "idempotency_key: give one to the batch, which knows its lines by their places; "
                "leave it out of the line",
                param="idempotency_key",
            )
        prepared = prepare(job, self._settings)
        kind = LineKind.TEXT if job.messages is None else LineKind.CHAT
        moments = (prepared.deadline_at_ms, self._batch.deadline_at_ms)
        return replace(
            prepared,
            deadline_at_ms=min((moment for moment in moments if moment is not None), default=None),
            fingerprint=fingerprint(job) if self._is_resumable else "",
            batch=BatchPlace(self._batch.batch_id, index, custom_id, kind.value),
        )

    def _reject(self, index: int, error: JobRejected) -> None:
        # A batch that takes no lines any more is no fault of a line.
        if self._on_rejected is not None and not isinstance(error, BatchClosed):
            self._on_rejected(index, error)
        elif self.refusal is None:
            error.add_note(f"line {index + 1} of {self._batch.batch_id}")
            self.refusal, self.refused_line = error, index + 1


def fails_batch(intake: BatchIntake, error: Exception, *, is_resumable: bool) -> bool:
    """Say whether a batch fails by an error, or was ended by others or can be gone on with."""
    if isinstance(error, BatchClosed | IdempotencyConflict):
        return False
    return error is intake.refusal or not is_resumable


def error_of(intake: BatchIntake, error: BaseException) -> BatchError:
    """Return why a batch fails whose lines cannot all come in."""
    if error is intake.refusal:
        refusal = intake.refusal
        return BatchError(
            code=refusal.code, message=str(refusal), line=intake.refused_line, param=refusal.param
        )
    # Only the kind: what the caller's own code says may hold text of a prompt.
    return BatchError(code="input_failed", message=f"the input ended by {type(error).__name__}")


def _job_of(line: BatchLine) -> tuple[GenerationJob, str]:
    """The job of a line and the caller's name for it."""
    if isinstance(line, BulkLine):
        if line.job is None:
            raise line.problem or JobRejected("the line asks for nothing")
        return line.job, line.custom_id
    custom_id: Any = ""
    if isinstance(line, Mapping) and "custom_id" in line:
        custom_id = "" if line["custom_id"] is None else line["custom_id"]
        line = {name: value for name, value in line.items() if name != "custom_id"}
        if not isinstance(custom_id, str) or len(custom_id) > MAX_ID_CHARS:
            raise JobRejected(
                f"custom_id: must be text of at most {MAX_ID_CHARS} characters", param="custom_id"
            )
    return as_job(line, {}), custom_id
