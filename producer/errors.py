"""Errors of the producer side, in one tree.

::

    BatchmillError
    ├── JobRejected               refused at submit; `code`, `param`
    │   ├── UnsupportedParameter  a known parameter that this version does not support
    │   ├── IdempotencyConflict   the key belongs to a job with other content
    │   ├── QueueFull             a limit on waiting jobs is reached; try later
    │   └── BatchClosed           a batch takes no more lines; `code`
    ├── JobUnfinished             raised by `result()`: the job ended without a completion; `code`
    │   ├── JobFailed
    │   ├── JobCancelled
    │   └── JobExpired            its deadline passed
    ├── ResultTimeout             the job has not ended yet; it continues
    ├── UnknownJob                never submitted, forgotten, or its time to live has run out
    ├── WrongState                a job cannot be retried or forgotten in its state; `state`
    ├── InvalidQuery              a tag, tenant, state, cursor or limit is invalid
    ├── UnknownBatch              never created, or its time to live has run out
    ├── BrokerUnavailable         no broker address, or no reply from it
    ├── WrongEventLoop            an asyncio client was used in another event loop
    ├── OutputRestarted           a stream cannot continue: the job was started over
    ├── TenantRefused             a tenant's name, weight, limit or window is invalid
    ├── BulkFileError             a file of a bulk run cannot be used
    └── SignatureError            a webhook that must not be trusted
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.producer.protocol.replies import JobState

    from .results import JobResult


class BatchmillError(Exception):
    """Base of all errors that `batchmill.producer` raises."""


class JobRejected(BatchmillError):
    """A job was refused before anything was stored.

    Attributes:
        code: `invalid_request`, `unsupported_parameter`, `structure_too_complex`,
            `idempotency_conflict`, `queue_full` or `batch_closed`.
        param: The field at fault, with dots if it is nested, or None.
        retryable: Whether the same job may be accepted later.
    """

    retryable = False

    def __init__(self, message: str, *, code: str = "invalid_request", param: str | None = None):
        super().__init__(message)
        self.code = code
        self.param = param


class UnsupportedParameter(JobRejected):
    """A parameter of other engines that this version does not support; it is never ignored."""

    def __init__(self, message: str, *, param: str):
        super().__init__(message, code="unsupported_parameter", param=param)


class IdempotencyConflict(JobRejected):
    """The idempotency key was used before for a job with other content.

    Attributes:
        job_id: The job, or the batch, that the key belongs to.
    """

    def __init__(self, message: str, *, job_id: str):
        super().__init__(message, code="idempotency_conflict", param="idempotency_key")
        self.job_id = job_id


class QueueFull(JobRejected):
    """A limit on waiting jobs, or on Redis' memory, is reached; nothing was stored. Try later."""

    retryable = True

    def __init__(self, message: str):
        super().__init__(message, code="queue_full")


class BatchClosed(JobRejected):
    """The batch takes no more lines: `batch_cancelled`, `batch_expired` or `batch_closed`."""

    def __init__(self, message: str, *, code: str = "batch_closed"):
        super().__init__(message, code=code)


class JobUnfinished(BatchmillError):
    """A job ended without a completion.

    Attributes:
        job_id: The job.
        code: The code of the job's error: `attempts_exhausted`, `deadline_exceeded` …
        retryable: Whether the same job, submitted again, may succeed.
        result: The output so far, if the worker kept it, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        code: str,
        retryable: bool = False,
        result: JobResult | None = None,
    ):
        super().__init__(message)
        self.job_id = job_id
        self.code = code
        self.retryable = retryable
        self.result = result


class JobFailed(JobUnfinished):
    """The job failed."""


class JobCancelled(JobUnfinished):
    """The job was cancelled."""


class JobExpired(JobUnfinished):
    """The job's deadline passed before it was done."""


class ResultTimeout(BatchmillError, TimeoutError):
    """The job did not end within the caller's timeout. It continues."""


class UnknownJob(BatchmillError, LookupError):
    """No job has this id: never submitted, forgotten, or its time to live has run out."""


class WrongState(BatchmillError):
    """A job cannot be retried or forgotten in its state. Nothing was changed.

    Attributes:
        job_id: The job.
        state: Its state.
    """

    def __init__(self, message: str, *, job_id: str, state: JobState):
        super().__init__(message)
        self.job_id = job_id
        self.state = state


class InvalidQuery(BatchmillError, ValueError):
    """The query is invalid: a tag, tenant, state, cursor or limit is wrong."""


class UnknownBatch(BatchmillError, LookupError):
    """No batch has this id: never created, or its time to live has run out."""


class BrokerUnavailable(BatchmillError, ConnectionError):
    """No broker address is known, or nothing replies there."""


class WrongEventLoop(BatchmillError, RuntimeError):
    """An asyncio client was used in another event loop than that of its connections."""


class OutputRestarted(BatchmillError):
    """A job was started over with another model or version: its output so far is void."""


class BulkFileError(BatchmillError):
    """A file of a bulk run is missing, wrong, in use, or does not belong to the run."""


class TenantRefused(BatchmillError, ValueError):
    """A tenant's name, weight, limit or window is invalid."""


class SignatureError(BatchmillError):
    """A webhook's signature, timestamp or form is wrong: respond 401, and trust no content."""
