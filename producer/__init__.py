"""The light side of batchmill: the wire contract and the clients. Never imports torch or Celery."""

from .answers import CancelAnswer, CancelStatus, JobState
from .async_client import AsyncClient, AsyncJob
from .batch_models import BatchRequest, BatchState, BatchStatus, RequestCounts
from .batch_store import BatchEntry
from .client import Client, Job
from .ended import EndedJob
from .errors import (
    BatchClosed,
    BatchmillError,
    BrokerUnavailable,
    BulkFileError,
    IdempotencyConflict,
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
)
from .models import GenerationJob, Message
from .results import JobError, JobResult, JobStatus, Metrics, Usage
from .settings import ProducerSettings
from .streaming import StreamPiece, StreamPosition
from .webhook import WebhookEvent, new_secret, verify_webhook
from .webhook_dedupe import SeenEvents

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BatchClosed",
    "BatchEntry",
    "BatchRequest",
    "BatchState",
    "BatchStatus",
    "BatchmillError",
    "BrokerUnavailable",
    "BulkFileError",
    "CancelAnswer",
    "CancelStatus",
    "Client",
    "EndedJob",
    "GenerationJob",
    "IdempotencyConflict",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobRejected",
    "JobResult",
    "JobState",
    "JobStatus",
    "JobUnfinished",
    "Message",
    "Metrics",
    "OutputRestarted",
    "ProducerSettings",
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
    "new_secret",
    "verify_webhook",
]
