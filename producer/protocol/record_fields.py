"""A job's record as readers in other languages meet it: the fields of a hash, all of them text.

Nothing here reads or writes records (`records.py` and the scripts do): this is where the schema
of what `HGETALL batchmill:job:ID` answers comes from, and a test holds it to real records.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .replies import JobState

_TIME = "Milliseconds of unix time, by Redis' clock."
Number = Annotated[str, Field(pattern=r"^[0-9]+$")]
Moment = Annotated[str, Field(pattern=r"^[0-9]+$", description=_TIME)]
Flag = Annotated[str, Field(pattern="^[01]$")]


_JSON: Any = {"contentMediaType": "application/json"}


class RecordFields(BaseModel):
    """Fields of a record. Readers leave out what they do not know: later versions add fields."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    id: str
    """The job."""
    v: Number
    """Version of the protocol."""
    model: str
    """Served name."""
    queue: str
    """Celery queue that it waits in."""
    state: JobState
    """Where it is; completed, failed, cancelled and expired are final."""
    doc: str = Field(json_schema_extra=_JSON)
    """The checked document, with its defaults and the seed that was drawn."""
    result: str | None = Field(default=None, json_schema_extra=_JSON)
    """The output, once there is one: see result.schema.json."""
    error: str | None = Field(default=None, json_schema_extra=_JSON)
    """code, message and retryable, where it did not complete."""
    enqueued_at_ms: Moment
    announced_at_ms: Moment
    started_at_ms: Moment | None = None
    finished_at_ms: Moment | None = None
    deadline_at_ms: Moment | None = None
    result_ttl_ms: Number
    """Time that the record is kept after the end."""
    attempts: Number
    """Times that a worker took it on."""
    fence: Number
    """Number of the last claim; only its holder may write."""
    owner: str | None = None
    """The worker that has, or had, it."""
    identity: str | None = None
    """Names weights, tokenizer, number format and sampler version of the output so far."""
    cancel_requested: Flag | None = None
    restarts: Number | None = None
    """Times that the output was discarded for another identity."""
    suspect: Number | None = None
    """Engine deaths that it was on board of, in company."""
    crashes: Number | None = None
    """Engine deaths that it was alone with."""
    alone: Flag | None = None
    """It runs without other jobs beside it."""
    announcements: Number | None = None
    """Messages that told of it."""
    claim_nonce: str | None = None
    """Of the last claim, so that a claim that is repeated finds itself."""
    completed_fence: Number | None = None
    """Of the claim that ended it."""
    celery_result: Flag | None = None
    """It came as a plain Celery task, whose sender wants Celery's result."""
    idempotency_key: str | None = None
    tenant: str
    """Whose job it is."""
    cost: Number
    """Tokens that it may take, prompt and output: an estimate."""
    charge: Number | None = None
    """What its tenant is charged for it until its end."""
    not_before_ms: Moment | None = None
    tags: str | None = None
    """Labels, with commas."""
    max_tokens: Number | None = None
    """Most tokens that it generates."""
    run: Number | None = None
    """Times that it was begun anew, by a retry after its end; the first is 1 and not written."""
    retry_nonce: str | None = None
    batch: str | None = None
    """The batch that it is a line of."""
    batch_counted: Flag | None = None
    """The batch has counted its end."""
    batch_late: Flag | None = None
    """It expired at the batch's deadline, and has not been retried since."""
    custom_id: str | None = None
    """The caller's own name for the line."""
    endpoint: str | None = None
    """OpenAI's path of the answer's shape."""
    fingerprint: str | None = None
    """Digest of the line, where its batch has an idempotency key."""
    webhook: str | None = None
    """Receiver of its events."""
    webhook_events: str | None = None
    """Names of the events to send, with commas; those of the end where absent."""
    webhook_secret: str | None = None
    """Name of the secret that signs them."""
    output_due_ms: Number | None = None
    output_event: str | None = None
    output_events: Number | None = None
    output_told: Number | None = None
