"""Names on the wire: Redis keys, channels, queues and identifiers.

The only Python file that writes them; `lua/lib/keys.lua` holds those that scripts use, and a test
compares the two. `docs/protocol.md` describes what each key holds and how long it lives.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time

#: Version written into every record and message.
PROTOCOL_VERSION = 1
#: Versions this code can run: its own and the previous one.
SUPPORTED_VERSIONS = (1,)

#: The Celery task that an announcement names.
TASK_NAME = "batchmill.generate"

PREFIX = "batchmill:"
LEASES = PREFIX + "leases"
DEADLINES = PREFIX + "deadlines"
QUEUES = PREFIX + "queues"
OUTBOX = PREFIX + "outbox"
DEAD = PREFIX + "dead"
WORKERS = PREFIX + "workers"
TOTALS = PREFIX + "totals"
ENDPOINTS_DISABLED = PREFIX + "endpoints_disabled"
BATCHES = PREFIX + "batches"
BATCHES_DUE = PREFIX + "batches_due"
#: Jobs whose keys are malformed, until the next sweep ends them.
UNUSABLE = PREFIX + "unusable"
#: Plain Celery tasks whose jobs have ended, until the end is reported to Celery.
CELERY_ENDS = PREFIX + "celery_ends"
#: Job documents from producers in any language: pushed, and taken until they are submitted.
INBOX = PREFIX + "inbox"
INBOX_ARRIVED = INBOX + ":arrived"
INBOX_TAKEN = INBOX + ":taken"
INBOX_DOCUMENTS = INBOX + ":documents"
SCHEDULED = PREFIX + "scheduled"
USAGE = PREFIX + "usage"
#: New usage counters, while the sweep rebuilds them.
RECOUNT = USAGE + ":recount"
TENANTS = PREFIX + "tenants"
WINDOW = PREFIX + "window"
#: Prefix of all indexes of jobs.
JOB_INDEXES = PREFIX + "jobs:"
EXPIRING = JOB_INDEXES + "expiring"
#: When any worker swept last, milliseconds: a long gap means that no holder could renew its leases.
LAST_SWEEP = PREFIX + "last_sweep"

#: Priority classes, highest first: the order in which a worker looks at its queues.
PRIORITIES = ("high", "normal", "low")

#: The tenant of a job without one.
DEFAULT_TENANT = "default"
#: Messages in a queue's list, unless the operator has set `WINDOW`.
DEFAULT_WINDOW_JOBS = 8

#: Time to live of a heartbeat; by default a worker writes three within it.
WORKER_TTL_S = 15
#: A webhook event is kept this long after its last attempt.
EVENT_TTL_S = 8 * 24 * 3600
#: A dead letter is kept this long.
DEAD_TTL_S = 30 * 24 * 3600

#: Pattern of a whole tenant name.
TENANT_PATTERN = "^[A-Za-z0-9_.-]{1,64}$"

# No dot: the id is part of a webhook id, and Standard Webhooks signs "id.timestamp.body".
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,199}")


def new_job_id() -> str:
    """Return a fresh job id; ids sort by creation time (milliseconds, this machine's clock)."""
    return f"gen_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def new_batch_id(idempotency_key: str | None) -> str:
    """Return a batch id: the same for the same key, a fresh one without a key."""
    if idempotency_key is None:
        return f"batch_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
    return f"batch_{hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]}"


def new_claim_nonce() -> str:
    """Return a fresh name for one claim of a job."""
    return secrets.token_hex(8)


def is_job_id(text: str) -> bool:
    """Return whether `text` can be a job id: 1 to 128 letters, digits, `_` and `-`."""
    return _JOB_ID.fullmatch(text) is not None


def is_secret_name(text: str) -> bool:
    """Return whether `text` can name a webhook secret: 1 to 64 letters, digits, `_` and `-`."""
    return _SECRET_NAME.fullmatch(text) is not None


def is_tenant_name(text: str) -> bool:
    """Return whether `text` can name a tenant: 1 to 64 letters, digits, `_`, `.` and `-`."""
    return re.fullmatch(TENANT_PATTERN, text) is not None


def is_model_name(text: str) -> bool:
    """Return whether `text` can be a served model name (it becomes part of a queue name)."""
    return _MODEL.fullmatch(text) is not None


def job(job_id: str) -> str:
    """Return the key of a job's record (hash)."""
    return f"{PREFIX}job:{job_id}"


def tokens(job_id: str) -> str:
    """Return the key of a job's generated token ids (string, uint32 little-endian)."""
    return f"{PREFIX}tokens:{job_id}"


def text(job_id: str) -> str:
    """Return the key of the final text of a running job (string, UTF-8)."""
    return f"{PREFIX}text:{job_id}"


def queued(queue: str) -> str:
    """Return the key of a queue's waiting jobs (zset)."""
    return f"{PREFIX}queued:{queue}"


def backlog(queue: str, tenant: str) -> str:
    """Return the key of a tenant's jobs that wait for their announcement (zset)."""
    return f"{PREFIX}backlog:{queue}:{tenant}"


def turns(queue: str) -> str:
    """Return the key of the tenants with jobs in a queue's backlog, in fair-share order (zset)."""
    return f"{PREFIX}turns:{queue}"


def used(queue: str) -> str:
    """Return the key of each tenant's use of a queue, in virtual time (zset)."""
    return f"{PREFIX}used:{queue}"


def under_way(queue: str) -> str:
    """Return the key of each tenant's charges for announced and running jobs of a queue (hash)."""
    return f"{PREFIX}under_way:{queue}"


def state_index(state: str) -> str:
    """Return the key of the jobs in one state (zset)."""
    return f"{JOB_INDEXES}state:{state}"


def tag_index(tag: str) -> str:
    """Return the key of the jobs with one tag (zset)."""
    return f"{JOB_INDEXES}tag:{tag}"


def tenant_index(tenant: str) -> str:
    """Return the key of the jobs of one tenant; the default tenant has none (zset)."""
    return f"{JOB_INDEXES}tenant:{tenant}"


def idempotency(key: str) -> str:
    """Return the key of an idempotency entry (hash)."""
    return f"{PREFIX}idempotency:{key}"


def batch(batch_id: str) -> str:
    """Return the key of a batch's record (hash)."""
    return f"{PREFIX}batch:{batch_id}"


def batch_jobs(batch_id: str) -> str:
    """Return the key of a batch's jobs, scored by their place in the input (zset)."""
    return f"{PREFIX}batch_jobs:{batch_id}"


def forgotten(job_id: str) -> str:
    """Return the key that marks a job as forgotten, for an hour (string, empty)."""
    return f"{PREFIX}forgotten:{job_id}"


def event(event_id: str) -> str:
    """Return the key of a webhook event (hash)."""
    return f"{PREFIX}event:{event_id}"


def failing(endpoint: str) -> str:
    """Return the key of the time since which an endpoint has had no success (string, ms)."""
    return f"{PREFIX}failing:{endpoint}"


def dead(letter_id: str) -> str:
    """Return the key of a dead letter (hash)."""
    return f"{PREFIX}dead:{letter_id}"


def worker(name: str) -> str:
    """Return the key of a worker's heartbeat (string, JSON)."""
    return f"{PREFIX}worker:{name}"


def channel(job_id: str) -> str:
    """Return the pub/sub channel that reports a job's checkpoints and its end."""
    return f"{PREFIX}events:{job_id}"


def queue_name(model: str, priority: str) -> str:
    """Return the Celery queue of a served model and a priority class.

    Raises:
        ValueError: the priority is not one of `PRIORITIES`, or the model name has characters
            that a queue name cannot have.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority is {priority!r}; it must be one of {', '.join(PRIORITIES)}")
    if not is_model_name(model):
        raise ValueError(
            f"model is {model!r}; a served name has 1 to 200 letters, digits and any of ._/:@+- "
            "and starts with a letter or digit"
        )
    return f"batchmill.{model}.{priority}"


def queue_names(model: str) -> tuple[str, ...]:
    """Return all queues of a model, highest priority first."""
    return tuple(queue_name(model, priority) for priority in PRIORITIES)
