"""`NewJob`: everything that `submit` stores for a job."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.media import NewMedia


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """The place of a job in a batch."""

    batch_id: str
    #: Place in the input, from 0.
    index: int
    #: The caller's own name for the line; empty for none.
    custom_id: str = ""
    #: OpenAI's path for the format of the result.
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits on waiting jobs, webhook events and memory; None is unlimited: `ProducerSettings`."""

    max_queue_depth: int | None = None
    max_queued_jobs: int | None = None
    max_queued_bytes: int | None = None
    max_queued_tokens: int | None = None
    #: Of Redis' `maxmemory`, for everything stored and promised.
    max_memory_percent: int | None = None
    max_outbox_events: int | None = None
    max_endpoint_events: int | None = None


NO_LIMITS = QueueLimits()


@dataclass(frozen=True, slots=True)
class NewJob:
    """Everything that `submit` stores for a job."""

    job_id: str
    model: str
    queue: str
    #: The validated job document, JSON.
    document: str
    #: Time to live of the record after the job has ended, milliseconds.
    result_ttl_ms: int
    webhook: str | None = None
    #: Names of the events to send, comma-separated; empty for those of the job's end.
    webhook_events: str = ""
    #: Name of the operator's secret to sign with; empty for the default one.
    webhook_secret: str = ""
    idempotency_key: str | None = None
    #: Digest of the content that an idempotency key, or a place in a batch, stands for.
    fingerprint: str = ""
    #: Absolute deadline, milliseconds of unix time.
    deadline_at_ms: int | None = None
    #: Relative deadline, milliseconds from now on Redis' clock; the earlier of the two counts.
    ttl_ms: int | None = None
    #: Its line in a batch, which counts the job's end.
    batch: BatchPlace | None = None
    #: A plain Celery task, whose sender may wait for Celery's result.
    celery_result: bool = False
    #: JSON of the message headers that give a plain Celery task its place in a workflow (group,
    #: parent, time limits); empty if it has none.
    celery_headers: str = ""
    #: JSON of what follows a plain Celery task: callbacks, errbacks, chain, chord.
    celery_embed: str = ""
    #: A plain Celery task that has not started by then expires, milliseconds of unix time.
    start_by_ms: int | None = None
    #: Celery's priority of the message that a job came in; 0, the highest, for any other job.
    message_priority: int = 0
    #: Tenants get a fair share of the workers.
    tenant: str = keys.DEFAULT_TENANT
    #: Tokens that the job may need, prompt and output: an estimate.
    cost: int = 1
    #: Bytes that its output may take in Redis at most: tokens, text and result.
    reserved_bytes: int = 0
    #: Time before which the job does not run, milliseconds of unix time.
    not_before_ms: int | None = None
    #: The job waits this long, milliseconds on Redis' clock; the later of the two counts.
    delay_ms: int | None = None
    #: Limits on waiting jobs, checked before the job is stored.
    limits: QueueLimits = NO_LIMITS
    #: Labels to find it by.
    tags: tuple[str, ...] = ()
    #: Most tokens that it generates; None if unknown.
    max_tokens: int | None = None
    #: Version of its record: that of the first protocol with its kind of job.
    version: int = keys.PROTOCOL_VERSION
    #: Id of the API key by which it came; empty without one.
    api_key: str = ""
    #: JSON of what the gateway needs to answer in its caller's terms; empty for other jobs.
    gateway: str = ""
    #: Digest of the beginning of its prompt; empty if that is too short to share.
    prefix: str = ""
    #: Name of its LoRA adapter; None without one.
    lora: str | None = None
    #: Ids of its pictures and sounds, in order; None for each whose URL is not fetched yet.
    media: tuple[str | None, ...] = ()
    #: What a worker must be able to do besides having keys; see `protocol/media.py`.
    needs: tuple[str, ...] = ()
    #: Those of its media that the caller sent along.
    new_media: tuple[NewMedia, ...] = field(default=(), repr=False)
    #: Name of its steering vector; None without one.
    steering: str | None = None
    #: Context of the span that sends it, in W3C's form; None without one.
    traceparent: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes, about, that are sent to store it."""
        return len(self.document) + sum(len(each.content) for each in self.new_media)
