"""The light side of batchmill: the wire contract and the clients. Never imports torch or Celery."""

from .answers import CancelAnswer, CancelStatus, JobState
from .async_client import AsyncClient, AsyncJob
from .chat_messages import Message
from .client import Client, Job
from .ended import EndedJob
from .errors import (
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
    UnknownJob,
    UnsupportedParameter,
)
from .models import GenerationJob
from .results import JobError, JobResult, JobStatus, Metrics, Usage
from .settings import ProducerSettings
from .streaming import StreamPiece, StreamPosition
from .webhook import WebhookEvent, new_secret, verify_webhook
from .webhook_dedupe import SeenEvents

__all__ = [
    "AsyncClient",
    "AsyncJob",
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
    "ResultTimeout",
    "SeenEvents",
    "SignatureError",
    "StreamPiece",
    "StreamPosition",
    "UnknownJob",
    "UnsupportedParameter",
    "Usage",
    "WebhookEvent",
    "new_secret",
    "verify_webhook",
]
