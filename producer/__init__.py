"""The producer side of batchmill: the wire contract and the clients.

Read `client/client.py` first, then `protocol/keys.py`. This folder never imports torch or Celery.
"""

from batchmill.producer.client.async_client import AsyncClient, AsyncJob
from batchmill.producer.client.client import Client, Job
from batchmill.producer.job.batch import BatchRequest, BatchState, BatchStatus, RequestCounts
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.messages import Message
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelCounts,
    CancelStatus,
    ForgetCounts,
    JobState,
)
from batchmill.producer.store.batches import BatchEntry
from batchmill.producer.store.ended_jobs import EndedJob
from batchmill.producer.store.job_index import JobPage
from batchmill.producer.store.job_output import StreamPiece, StreamPosition
from batchmill.producer.store.job_progress import EtaUnknown, JobProgress, ProgressSummary
from batchmill.producer.webhook.dedupe import AsyncSeenEvents, SeenEvents
from batchmill.producer.webhook.signature import WebhookEvent, new_secret, verify_webhook

from .errors import (
    BatchClosed,
    BatchmillError,
    BrokerUnavailable,
    BulkFileError,
    IdempotencyConflict,
    InvalidQuery,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRejected,
    JobUnfinished,
    OutputRestarted,
    QueueFull,
    ResultTimeout,
    SignatureError,
    UnknownBatch,
    UnknownJob,
    UnsupportedParameter,
    WrongEventLoop,
    WrongState,
)
from .results import JobError, JobResult, JobStatus, Metrics, Usage
from .settings import ProducerSettings

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "AsyncSeenEvents",
    "BatchClosed",
    "BatchEntry",
    "BatchRequest",
    "BatchState",
    "BatchStatus",
    "BatchmillError",
    "BrokerUnavailable",
    "BulkFileError",
    "CancelAnswer",
    "CancelCounts",
    "CancelStatus",
    "Client",
    "EndedJob",
    "EtaUnknown",
    "ForgetCounts",
    "GenerationJob",
    "IdempotencyConflict",
    "InvalidQuery",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobPage",
    "JobProgress",
    "JobRejected",
    "JobResult",
    "JobState",
    "JobStatus",
    "JobUnfinished",
    "Message",
    "Metrics",
    "OutputRestarted",
    "ProducerSettings",
    "ProgressSummary",
    "QueueFull",
    "RequestCounts",
    "ResultTimeout",
    "SeenEvents",
    "SignatureError",
    "StreamPiece",
    "StreamPosition",
    "UnknownBatch",
    "UnknownJob",
    "UnsupportedParameter",
    "Usage",
    "WebhookEvent",
    "WrongEventLoop",
    "WrongState",
    "new_secret",
    "verify_webhook",
]
