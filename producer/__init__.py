"""The producer side of batchmill: the wire contract and the clients.

Read `client/client.py` first, then `protocol/keys.py`. This folder never imports torch or Celery.
"""

from batchmill.producer.broker_url import celery_options, celery_tls, celery_url, find_broker
from batchmill.producer.client.async_client import AsyncClient, AsyncJob
from batchmill.producer.client.batch_intake import LineFields
from batchmill.producer.client.client import Client, Job
from batchmill.producer.client.job_groups import JobLike
from batchmill.producer.client.submissions import AsyncSubmissions, Submissions
from batchmill.producer.client.vector_results import Embeddings, RankedDocument, Scores
from batchmill.producer.job.batch import BatchRequest, BatchState, BatchStatus, RequestCounts
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.job_fields import BatchFields, JobFields
from batchmill.producer.job.messages import Message
from batchmill.producer.job.retry import RetryPolicy
from batchmill.producer.progress import EtaUnknown, JobProgress, ProgressSummary
from batchmill.producer.protocol.pauses import Pause, PauseKind
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelCounts,
    CancelStatus,
    ForgetCounts,
    JobState,
)
from batchmill.producer.store.batches import BatchEntry
from batchmill.producer.store.ended_jobs import EndedJob
from batchmill.producer.store.job_index import JobFilter, JobPage
from batchmill.producer.store.job_output import StreamPiece, StreamPosition
from batchmill.producer.store.replay import ReplayCounts
from batchmill.producer.webhook.dedupe import AsyncSeenEvents, SeenEvents
from batchmill.producer.webhook.signature import WebhookEvent, new_secret, verify_webhook

from .errors import (
    BatchClosed,
    BatchmillError,
    BrokerUnavailable,
    BulkFileError,
    ContentChanged,
    EncryptionUnavailable,
    IdempotencyConflict,
    InvalidQuery,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRejected,
    JobUnfinished,
    KeyMissing,
    NotReplicated,
    OutputRestarted,
    PayloadMissing,
    PayloadsUnavailable,
    PayloadUnreachable,
    QueueFull,
    QueuePaused,
    ResultTimeout,
    ShardMismatch,
    SignatureError,
    StructureCheckUnavailable,
    TracesUnavailable,
    UnknownBatch,
    UnknownJob,
    UnsupportedBroker,
    UnsupportedParameter,
    UnusableRecord,
    WrongEventLoop,
    WrongState,
)
from .protocol.attempts import Attempt
from .result_parts import JobError, LogprobDetails, Metrics, Usage
from .results import JobResult, JobStatus
from .settings import ProducerSettings

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "AsyncSeenEvents",
    "AsyncSubmissions",
    "Attempt",
    "BatchClosed",
    "BatchEntry",
    "BatchFields",
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
    "ContentChanged",
    "Embeddings",
    "EncryptionUnavailable",
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
    "JobFields",
    "JobFilter",
    "JobLike",
    "JobPage",
    "JobProgress",
    "JobRejected",
    "JobResult",
    "JobState",
    "JobStatus",
    "JobUnfinished",
    "KeyMissing",
    "LineFields",
    "LogprobDetails",
    "Message",
    "Metrics",
    "NotReplicated",
    "OutputRestarted",
    "Pause",
    "PauseKind",
    "PayloadMissing",
    "PayloadUnreachable",
    "PayloadsUnavailable",
    "ProducerSettings",
    "ProgressSummary",
    "QueueFull",
    "QueuePaused",
    "RankedDocument",
    "ReplayCounts",
    "RequestCounts",
    "ResultTimeout",
    "RetryPolicy",
    "Scores",
    "SeenEvents",
    "ShardMismatch",
    "SignatureError",
    "StreamPiece",
    "StreamPosition",
    "StructureCheckUnavailable",
    "Submissions",
    "TracesUnavailable",
    "UnknownBatch",
    "UnknownJob",
    "UnsupportedBroker",
    "UnsupportedParameter",
    "UnusableRecord",
    "Usage",
    "WebhookEvent",
    "WrongEventLoop",
    "WrongState",
    "celery_options",
    "celery_tls",
    "celery_url",
    "find_broker",
    "new_secret",
    "verify_webhook",
]
