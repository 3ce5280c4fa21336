"""Errors of the producer side, in one tree.

::

    BatchmillError
    ├── JobRejected               refused at submit; `code`, `param`
    │   ├── UnsupportedParameter  a known parameter that this version does not support
    │   ├── IdempotencyConflict   the key belongs to a job with other content
    │   ├── QueueFull             a limit on waiting jobs is reached; try later
    │   │   └── QueuePaused       the operator has paused the queue or the tenant
    │   ├── StructureCheckUnavailable  no process can check its schema or grammar; try later
    │   └── BatchClosed           a batch takes no more lines; `code`
    ├── JobUnfinished             raised by `result()`: the job ended without a completion; `code`
    │   ├── JobFailed
    │   ├── JobCancelled
    │   └── JobExpired            its deadline passed
    ├── ResultTimeout             the job has not ended yet; it continues
    ├── UnknownJob                never submitted, forgotten, or its time to live has run out
    ├── WrongState                a job cannot be retried or forgotten in its state; `state`
    ├── InvalidQuery              a tag, tenant, state, cursor, limit or position is invalid
    ├── UnknownBatch              never created, or its time to live has run out
    ├── BrokerUnavailable         no broker address, or no reply from it
    │   ├── NotReplicated         it has stored the call, but too few replicas have
    │   ├── UnsupportedBroker     its version is too old, or it runs in cluster mode
    │   └── ShardMismatch         it is another shard, or belongs to another list of shards
    ├── EncryptionUnavailable     keys are set and cannot be used
    ├── KeyMissing                content is sealed with a key that this program does not have
    ├── ContentChanged            sealed or stored content was changed
    ├── PayloadsUnavailable       an object store is set and cannot be used
    ├── PayloadUnreachable        the object store does not respond
    ├── PayloadMissing            an object is gone, or this program has no object store
    ├── TracesUnavailable         spans are asked for and cannot be made
    ├── WrongEventLoop            an asyncio client was used in another event loop
    ├── OutputRestarted           a stream cannot continue: the job was started over
    ├── AdapterRefused            a registered LoRA adapter or steering vector is invalid
    ├── ApiKeyRefused             a name, a model or a limit of an API key is invalid
    ├── ReceiverRefused           a field of a registered receiver is invalid; `param`
    ├── TenantRefused             a tenant's name, weight, limit or window is invalid
    ├── BulkFileError             a file of a bulk run cannot be used
    └── SignatureError            a webhook that must not be trusted
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from batchmill.producer.protocol.content import UnreadableContent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batchmill.producer.progress import JobProgress, ProgressSummary
    from batchmill.producer.protocol.replies import JobState

    from .results import JobResult


class BatchmillError(Exception):
    """Base of all errors that `batchmill.producer` raises.

    Attributes:
        code: Stable name of the error, the same in Python, on the command line, in records and in
            webhooks; `docs/reference/errors.md` lists all.
        retryable: Whether the same call, made again later, may succeed.
        job_ids: The jobs that the call is known to have submitted; empty if it submits none.
    """

    code = "error"
    retryable = False
    job_ids: tuple[str, ...] = ()


class JobRejected(BatchmillError):
    """A job was refused before anything was stored.

    Attributes:
        code: `invalid_request`, `unsupported_parameter`, `structure_too_complex`,
            `structure_check_unavailable`, `idempotency_conflict`, `queue_full`, `queue_paused` or
            `batch_closed`.
        param: The field at fault, with dots if it is nested, or None.
        retryable: Whether the same job may be accepted later.
        custom_id: The caller's name for the line, if it is a line of a batch that has one.
    """

    custom_id: str | None = None

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


class StructureCheckUnavailable(JobRejected):
    """No process can be started that checks a schema or a grammar; nothing was stored."""

    retryable = True

    def __init__(self, message: str, *, param: str):
        super().__init__(message, code="structure_check_unavailable", param=param)


class QueueFull(JobRejected):
    """A limit on waiting jobs, or on Redis' memory, is reached; nothing was stored. Try later."""

    retryable = True

    def __init__(self, message: str, *, code: str = "queue_full"):
        super().__init__(message, code=code)


class QueuePaused(QueueFull):
    """The operator has paused the queue or the tenant, and it refuses jobs meanwhile. Try later."""

    def __init__(self, message: str):
        super().__init__(message, code="queue_paused")


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
    """The job did not end within the caller's timeout. It continues.

    Attributes:
        job_id: The job; None if several were waited for.
        progress: How far it is: its place in the queue and the estimated end, or that no worker
            serves its model. Of several jobs, that of up to 500 which have not ended. None if the
            broker did not tell it in time.
    """

    code = "timeout"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        progress: JobProgress | ProgressSummary | None = None,
    ):
        super().__init__(message)
        self.job_id = job_id
        self.progress = progress


class UnknownJob(BatchmillError, LookupError):
    """No job has this id: never submitted, forgotten, or its time to live has run out."""

    code = "unknown_job"


class WrongState(BatchmillError):
    """A job cannot be retried or forgotten in its state. Nothing was changed.

    Attributes:
        job_id: The job.
        state: Its state.
    """

    code = "wrong_state"

    def __init__(self, message: str, *, job_id: str, state: JobState):
        super().__init__(message)
        self.job_id = job_id
        self.state = state


class InvalidQuery(BatchmillError, ValueError):
    """The query is invalid: a tag, tenant, state, cursor, limit or position is wrong."""

    code = "invalid_query"


class UnknownBatch(BatchmillError, LookupError):
    """No batch has this id: never created, or its time to live has run out."""

    code = "unknown_batch"


class BrokerUnavailable(BatchmillError, ConnectionError):
    """No broker address is known, or nothing replies there.

    Attributes:
        shards: The names of the shards that failed; empty for a single broker.
    """

    code = "broker_unavailable"
    retryable = True

    shards: tuple[str, ...] = ()

    def of_shards(self, names: Iterable[str]) -> Self:
        """Return this error with the names of the shards that failed."""
        self.shards = tuple(names)
        return self


class UnsupportedBroker(BrokerUnavailable):
    """The server cannot be used as a broker: it is too old, or runs in cluster mode."""

    code = "unsupported_broker"
    retryable = False


class ShardMismatch(BrokerUnavailable):
    """A broker is another shard than the program's list says, or belongs to another list."""

    code = "shard_mismatch"
    retryable = False


class UnusableRecord(BatchmillError):
    """A key in Redis holds data that batchmill did not write, such as another type."""

    code = "unusable_record"


class NotReplicated(BrokerUnavailable):
    """The broker has stored what was sent, but too few replicas have confirmed it in time.

    The job is in the queue and runs like any other; only a failover may lose it.

    Attributes:
        job_ids: The jobs that were submitted: each can be followed by its id.
    """

    code = "not_replicated"
    retryable = False

    def __init__(self, message: str, *, job_ids: Sequence[str] = ()):
        super().__init__(message)
        self.job_ids = tuple(job_ids)


class EncryptionUnavailable(BatchmillError):
    """Keys are set (`BATCHMILL_ENCRYPTION_KEYS`) and malformed, or a package is missing."""

    code = "encryption_unavailable"


class KeyMissing(BatchmillError, UnreadableContent):
    """Content is sealed with a key that this program does not have.

    Attributes:
        key_id: The key: its name, a dot and a check value.
    """

    code = "missing_key"

    def __init__(self, message: str, *, key_id: str):
        super().__init__(message)
        self.key_id = key_id


class ContentChanged(BatchmillError, UnreadableContent):
    """Content was changed in Redis or in the object store, or moved from another place."""

    code = "integrity"


class PayloadsUnavailable(BatchmillError):
    """An object store is set (`BATCHMILL_PAYLOAD_URL`), and it or a package cannot be used."""

    code = "payloads_unavailable"


class PayloadUnreachable(BatchmillError, UnreadableContent):
    """An object could not be written or read in time."""

    code = "payload_unreachable"
    retryable = True


class PayloadMissing(BatchmillError, UnreadableContent):
    """An object is not in the store, or this program has no store to look in."""

    code = "payload_missing"


class TracesUnavailable(BatchmillError):
    """Spans are asked for (`BATCHMILL_TRACES`), and a package or a valid setting is missing."""

    code = "traces_unavailable"


class WrongEventLoop(BatchmillError, RuntimeError):
    """An asyncio client was used in another event loop than that of its connections."""

    code = "wrong_event_loop"


class OutputRestarted(BatchmillError):
    """A job was started over, with another model or version or after Redis lost some of its output.

    The output so far is void.
    """

    code = "output_restarted"
    retryable = True


class BulkFileError(BatchmillError):
    """A file of a bulk run is missing, wrong, in use, or does not belong to the run."""

    code = "bulk_file"


class TenantRefused(BatchmillError, ValueError):
    """A tenant's name, weight, limit or window is invalid."""

    code = "tenant_refused"


class AdapterRefused(BatchmillError, ValueError):
    """The name, the model or a tenant of a LoRA adapter or a steering vector is invalid."""


class ApiKeyRefused(BatchmillError, ValueError):
    """The name, the tenant, a model or a limit of an API key is invalid."""


class ReceiverRefused(BatchmillError, ValueError):
    """A field of a registered receiver of webhooks is invalid, or its URL is not allowed.

    Attributes:
        param: The field.
    """

    def __init__(self, message: str, *, param: str):
        super().__init__(message)
        self.param = param


class SignatureError(BatchmillError):
    """A webhook's signature, timestamp or form is wrong: respond 401, and trust no content."""

    code = "invalid_signature"
