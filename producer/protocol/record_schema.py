"""Source of `record.schema.json`: the fields of a job's record, all of them text.

Other languages read a record with `HGETALL batchmill:job:ID`. Nothing here reads or writes one:
`records.py` and the scripts do. A test compares this schema with real records.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .replies import JobState

_TIME = "Milliseconds of unix time, by the clock of Redis."
Number = Annotated[str, Field(pattern=r"^[0-9]+$")]
Moment = Annotated[str, Field(pattern=r"^[0-9]+$", description=_TIME)]
Flag = Annotated[str, Field(pattern="^[01]$")]


_JSON: Any = {"contentMediaType": "application/json"}


class RecordFields(BaseModel):
    """Fields of a record. Readers ignore unknown fields: later versions add some."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    id: str
    """Id of the job."""
    v: Number
    """Version of the protocol."""
    model: str
    """Served name."""
    queue: str
    """Celery queue in which the job waits."""
    state: JobState
    """State of the job; completed, failed, cancelled and expired are final."""
    doc: str = Field(json_schema_extra=_JSON)
    """The validated document, with its defaults and the seed that was chosen."""
    result: str | None = Field(default=None, json_schema_extra=_JSON)
    """The result, if the job has one: see result.schema.json."""
    error: str | None = Field(default=None, json_schema_extra=_JSON)
    """code, message and retryable, if the job did not complete."""
    enqueued_at_ms: Moment
    announced_at_ms: Moment
    started_at_ms: Moment | None = None
    finished_at_ms: Moment | None = None
    deadline_at_ms: Moment | None = None
    start_by_ms: Moment | None = None
    """When a plain Celery task expires that has not started; deleted when it starts."""
    result_ttl_ms: Number
    """How long the record is kept after the end."""
    attempts: Number
    """How often a worker claimed the job."""
    claimed_at_ms: Moment | None = None
    """Time of the last claim."""
    claimed_tokens: Number | None = None
    """Output tokens that the last claim continued from."""
    history: str | None = Field(default=None, json_schema_extra=_JSON)
    """The claims that have ended, oldest first: a list of objects with attempt, worker,
    claimed_at_ms, ended_at_ms, tokens_at_claim, tokens_at_end, cause and, after a failure, code.
    Of more than 20, the first 4 and the last 16 are kept."""
    fence: Number
    """Number of the last claim; only its holder, who also knows `claim_nonce`, may write."""
    owner: str | None = None
    """The worker that holds, or held, the job."""
    session: str | None = None
    """The run of that worker: another process of the same name has another session."""
    prefix: str | None = None
    """Digest of the beginning of the prompt; under an encryption key, an HMAC of it."""
    passed_over: Number | None = None
    """How often a worker took another job of the tenant, whose prefix it had computed, first."""
    home: str | None = None
    """The session whose engine can continue the job, while it waits after a time slice."""
    corpus: str | None = None
    """Digest of the corpus that lists the job, so that later jobs may draft from its output."""
    identity: str | None = None
    """Identifies weights, tokenizer, number format and sampler version of the output so far."""
    cancel_requested: Flag | None = None
    restarts: Number | None = None
    """How often the output was discarded because the identity had changed."""
    suspect: Number | None = None
    """Engine deaths while the job ran beside others, since its last progress."""
    crashes: Number | None = None
    """Engine deaths while the job ran alone."""
    lost_leases: Number | None = None
    """Workers lost in a row without a new token."""
    tokens_at_loss: Number | None = None
    """Output tokens stored at the last loss of an engine or a lease."""
    alone: Flag | None = None
    """Whether the job runs without other jobs beside it."""
    announcements: Number | None = None
    """How many messages announced the job."""
    backlog_at_us: Number | None = None
    """Its place among the waiting jobs of its tenant: the start of the wait (µs)."""
    claim_nonce: str | None = None
    """Random name of the last claim: part of its fence, and a repeated call finds its own claim."""
    completed_fence: str | None = None
    """Fence of the claim that ended the job: its number, a dot and its nonce."""
    celery_result: Flag | None = None
    """Whether it came as a plain Celery task, whose sender may wait for Celery's result."""
    celery_headers: str | None = Field(default=None, json_schema_extra=_JSON)
    """Place of a plain Celery task in its workflow, as headers of the message."""
    celery_embed: str | None = Field(default=None, json_schema_extra=_JSON)
    """Callbacks, errbacks, chain and chord of a plain Celery task."""
    idempotency_key: str | None = None
    tenant: str
    """Tenant that the job belongs to."""
    cost: Number
    """Estimate of the job's tokens, prompt and output."""
    charge: Number | None = None
    """Charge to the tenant for this job until its end."""
    reserved_bytes: Number
    """Bytes that the output may take at most: tokens, text and result."""
    version_refusals: Number | None = None
    """Claims by workers that do not know the record's version."""
    sealed_with: str | None = None
    """Ids of the encryption keys that its content was sealed with, separated by spaces; and
    what a worker must be able to do besides: `@payloads` (read its object store), `@images` and
    `@sounds` (decode them)."""
    plan_state: str | None = None
    """State of a running job's beam search, from which another attempt continues: JSON,
    compressed by zlib."""
    plan_identity: str | None = None
    """Identity of the engine that computed `plan_state`."""
    payloads: str | None = None
    """Names of its objects outside Redis, separated by spaces."""
    key_refusals: Number | None = None
    """Claims by workers that do not have these keys or abilities."""
    not_before_ms: Moment | None = None
    api_key: str | None = None
    """Id of the API key by which the job came through the gateway."""
    receiver_events: str | None = None
    """Ids of its webhook events for receivers of its tenant, separated by commas."""
    used_tokens: str | None = None
    """What its ends have counted: 1, then tokens of the prompt, of the output, and cached ones."""
    gateway: str | None = Field(default=None, json_schema_extra=_JSON)
    """What the gateway needs to answer in its caller's terms."""
    lora: str | None = None
    """Digest of its LoRA adapter, for which its name stood at submit: all of the job is computed
    with this version."""
    media: str | None = None
    """Names of its pictures and sounds, in their order in the document, separated by spaces; `-`
    for each whose URL is not fetched yet."""
    steering: str | None = None
    """Digest of its steering vector, likewise."""
    traceparent: str | None = None
    """W3C context of the span that sent the job, or of its caller."""
    tags: str | None = None
    """Labels, separated by commas."""
    max_tokens: Number | None = None
    """Maximum number of generated tokens."""
    run: Number | None = None
    """Number of the run: 1 (not written), plus one per retry after an end."""
    retry_nonce: str | None = None
    retries: Number | None = None
    """Failed attempts of this run that were followed by another one."""
    retry_error: str | None = Field(default=None, json_schema_extra=_JSON)
    """The error of the last attempt that was followed by another one."""
    retry_fence: str | None = None
    """Fence of that attempt: the job waits for its retry until another claim."""
    batch: str | None = None
    """Batch whose line the job is."""
    batch_counted: Flag | None = None
    """Whether the batch has counted the job's end."""
    batch_late: Flag | None = None
    """Whether the job expired at the batch's deadline and has not been retried since."""
    custom_id: str | None = None
    """The caller's own name for the line."""
    endpoint: str | None = None
    """OpenAI path whose response format the result line has."""
    fingerprint: str | None = None
    """Digest of the line, if its batch has an idempotency key."""
    webhook: str | None = None
    """URL that receives the job's events."""
    webhook_events: str | None = None
    """Names of the events to send, separated by commas; only the end if absent."""
    webhook_secret: str | None = None
    """Name of the secret that signs the events."""
    output_due_ms: Number | None = None
    output_event: str | None = None
    output_events: Number | None = None
    output_told: Number | None = None
