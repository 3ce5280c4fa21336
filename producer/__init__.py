"""The light side of batchmill: the wire contract and the clients. Never imports torch or Celery."""

from .answers import CancelAnswer, CancelStatus, JobState
from .async_client import AsyncClient, AsyncJob
from .batch_models import BatchRequest, BatchState, BatchStatus, RequestCounts
from .batch_store import BatchEntry
from .chat_messages import Message
from .client import Client, Job
from .counts import CancelCounts, ForgetCounts
from .ended import EndedJob
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
from .job_index import JobPage
from .models import GenerationJob
from .progress import EtaUnknown, JobProgress, ProgressSummary
from .results import JobError, JobResult, JobStatus, Metrics, Usage
from .settings import ProducerSettings
from .streaming import StreamPiece, StreamPosition
from .webhook import WebhookEvent, new_secret, verify_webhook
from .webhook_dedupe import AsyncSeenEvents, SeenEvents

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
