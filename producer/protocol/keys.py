"""Names on the wire: Redis keys, channels, queues and identifiers.

The only Python file that writes them; `lua/lib/keys.lua` holds those that scripts use, and a test
compares the two. `docs/protocol.md` describes what each key holds and how long it lives.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time

#: Version of every message, and of the records of jobs that generate.
PROTOCOL_VERSION = 1
#: Version of the records of other kinds of job. A worker of version 1 would not know what they ask
#: for: it refuses the claim, and leaves the job for a worker that knows.
KINDS_VERSION = 2
#: Version of the records of jobs with a LoRA adapter, of any kind, for the same reason.
ADAPTERS_VERSION = 3
#: Version of the records of jobs with pictures or sounds, with and without an adapter.
MEDIA_VERSION = 4
#: Version of the records of jobs with a steering vector, whatever else they have.
STEERING_VERSION = 5
#: Versions this code can run.
SUPPORTED_VERSIONS = (
    *(PROTOCOL_VERSION, KINDS_VERSION, ADAPTERS_VERSION, MEDIA_VERSION, STEERING_VERSION),
)

#: The Celery task that an announcement names.
TASK_NAME = "batchmill.generate"

PREFIX = "batchmill:"
LEASES = PREFIX + "leases"
DEADLINES = PREFIX + "deadlines"
QUEUES = PREFIX + "queues"
#: Webhook events that wait for delivery.
OUTBOX = PREFIX + "outbox"
#: Webhook events whose delivery has ended, until some days after their time to live.
SETTLED_EVENTS = PREFIX + "settled_events"
#: Hosts with waiting events, by the time of their next turn: those that respond quickly, those
#: that may be slow and have nothing in flight, those that may be slow and have something, and
#: those with replayed events.
FAST_HOSTS = PREFIX + "outbox_hosts:fast"
FIRST_HOSTS = PREFIX + "outbox_hosts:first"
MORE_HOSTS = PREFIX + "outbox_hosts:more"
REPLAY_HOSTS = PREFIX + "outbox_hosts:replay"
OUTBOX_TAKERS = PREFIX + "outbox_takers"
DEAD = PREFIX + "dead"
#: Dead letters that a script made of documents, until a worker has sealed them.
PLAIN_LETTERS = PREFIX + "plain_letters"
WORKERS = PREFIX + "workers"
#: Sessions (runs of workers) by the time at which they turn silent, milliseconds.
SESSIONS = PREFIX + "sessions"
TOTALS = PREFIX + "totals"
#: Queues, tenants and endpoints that an operator has paused.
PAUSED = PREFIX + "paused"
ENDPOINTS_DISABLED = PREFIX + "endpoints_disabled"
BATCHES = PREFIX + "batches"
BATCHES_DUE = PREFIX + "batches_due"
#: Batches whose lines a gateway is to read from their file, by the time of the next try (ms).
BATCH_INTAKES = PREFIX + "batch_intakes"
#: Files of the gateway by the time at which they expire (ms).
FILES_EXPIRING = PREFIX + "files_expiring"
#: Jobs whose keys are malformed, until the next sweep ends them.
UNUSABLE = PREFIX + "unusable"
#: Plain Celery tasks whose jobs have ended, until the end is reported to Celery.
CELERY_ENDS = PREFIX + "celery_ends"
#: Of these, which session reports each of them now.
CELERY_END_TAKERS = PREFIX + "celery_end_takers"
#: Plain Celery tasks that a worker has taken off their queue, until they have a record.
TASKS_TAKEN = PREFIX + "tasks:taken"
#: Job documents from producers in any language: pushed, and taken until they are submitted.
INBOX = PREFIX + "inbox"
INBOX_ARRIVED = INBOX + ":arrived"
INBOX_TAKEN = INBOX + ":taken"
INBOX_DOCUMENTS = INBOX + ":documents"
INBOX_TAKERS = INBOX + ":takers"
SCHEDULED = PREFIX + "scheduled"
USAGE = PREFIX + "usage"
#: New usage counters, while the sweep rebuilds them.
RECOUNT = USAGE + ":recount"
#: The signing secrets of receivers, by their ids.
RECEIVER_SECRETS = PREFIX + "receiver_secrets"
#: Days on which jobs ended whose tokens are counted.
USED_TOKENS = PREFIX + "used_tokens"
TENANTS = PREFIX + "tenants"
WINDOW = PREFIX + "window"
#: LoRA adapters, by the names that jobs give them.
ADAPTERS = PREFIX + "adapters"
#: Steering vectors, likewise.
STEERING_VECTORS = PREFIX + "steering_vectors"
#: API keys of the gateway, by the SHA-256 of their secret.
API_KEYS = PREFIX + "api_keys"
#: Samples of the load of all workers, the newest first.
LOAD_HISTORY = PREFIX + "load_history"
#: Prefix of all indexes of jobs.
JOB_INDEXES = PREFIX + "jobs:"
EXPIRING = JOB_INDEXES + "expiring"
#: When any worker swept last, milliseconds: a long gap means that no holder could renew its leases.
LAST_SWEEP = PREFIX + "last_sweep"
#: Pattern of the records of jobs and of all their indexes.
RECORDS_AND_INDEXES = PREFIX + "[jl]*"
#: When the sweeps last repaired, and how far they are in the keys of the store.
REPAIR = PREFIX + "repair"
#: The time by which scripts go; it continues if Redis' clock is put back.
CLOCK = PREFIX + "clock"
#: The last reading of the memory that Redis uses.
MEMORY = PREFIX + "memory"
#: A shard's name, and the lists of shards that it belongs to.
SHARD = PREFIX + "shard"
#: Queues by the time of the last heartbeat of a worker that serves them.
SERVED = PREFIX + "served"
#: Entries of the indexes of leftovers, by the time at which they are removed.
LEFTOVERS = PREFIX + "leftovers"
#: Objects outside Redis, by the time at which it is looked up whether a record refers to them.
PAYLOADS = PREFIX + "payloads"
#: Those that nothing refers to, by the time of the next try to delete them.
PAYLOADS_UNUSED = PREFIX + "payloads_unused"
#: Corpora of all tenants, by the time at which they learned last (ms).
CORPORA = PREFIX + "corpora"
#: Pictures and sounds, by the time at which it is looked up whether a job needs them.
MEDIA_DUE = PREFIX + "media_due"

#: Priority classes, highest first: the order in which a worker looks at its queues.
PRIORITIES = ("high", "normal", "low")

#: The tenant of a job without one.
DEFAULT_TENANT = "default"
#: Announcements of a queue, unless the operator has set `WINDOW`.
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


#: A channel without readers: its messages show how far the replicas are.
REPLICATED = PREFIX + "replicated"


def new_job_id() -> str:
    """Return a fresh job id; ids sort by creation time (milliseconds, this machine's clock)."""
    return f"gen_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def new_batch_id(idempotency_key: str | None, tenant: str | None = None) -> str:
    """Return a batch id: the same for the same key of a tenant, a fresh one without a key."""
    if idempotency_key is None:
        return f"batch_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
    # Keys of callers are printable, and tenants' names have no NUL: no two of these are the same.
    name = idempotency_key
    if tenant not in (None, DEFAULT_TENANT):
        name = f"tenant\0{tenant}\0{idempotency_key}"
    return f"batch_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def new_claim_nonce() -> str:
    """Return a fresh name for one claim of a job."""
    return secrets.token_hex(8)


def new_session(name: str) -> str:
    """Return a fresh name for one run of a program: its own name, a dot and 16 hex digits."""
    return f"{name}.{secrets.token_hex(8)}"


def is_job_id(text: str) -> bool:
    """Return whether `text` can be a job id: 1 to 128 letters, digits, `_` and `-`."""
    return _JOB_ID.fullmatch(text) is not None


def is_secret_name(text: str) -> bool:
    """Return whether `text` can name a webhook secret: 1 to 64 letters, digits, `_` and `-`."""
    return _SECRET_NAME.fullmatch(text) is not None


def is_adapter_name(name: str) -> bool:
    """Return whether a text can name a LoRA adapter or a steering vector."""
    return is_tenant_name(name)


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


def thoughts(job_id: str) -> str:
    """Return the key of the thoughts of a running job (string, UTF-8)."""
    return f"{PREFIX}thoughts:{job_id}"


def seals(job_id: str) -> str:
    """Return the key of the seals of a job's tokens and text, by their places (hash)."""
    return f"{PREFIX}seals:{job_id}"


def corpus(tenant: str, digest: str) -> str:
    """Return the key of the finished jobs that others of a template draft tokens from (zset)."""
    return f"{PREFIX}corpus:{tenant}:{digest}"


def tenant_corpora(tenant: str) -> str:
    """Return the key of a tenant's corpora, by the time at which they learned last (zset)."""
    return f"{CORPORA}:{tenant}"


def media(name: str) -> str:
    """Return the key of a tenant's picture or sound (hash); `media_names` makes the name."""
    return f"{PREFIX}media:{name}"


def media_jobs(name: str) -> str:
    """Return the key of the jobs that name a picture or a sound (zset)."""
    return f"{PREFIX}media_jobs:{name}"


def announced(queue: str) -> str:
    """Return the key of a queue's announcements, which workers pop (list)."""
    return f"{PREFIX}announced:{queue}"


def handed(session: str) -> str:
    """Return the key of the announcements that are for one session of a worker only (list)."""
    return f"{PREFIX}handed:{session}"


def wants(model: str) -> str:
    """Return the key of the sessions that ask for jobs that others hold (hash)."""
    return f"{PREFIX}wants:{model}"


def arrived(name: str) -> str:
    """Return the key of plain Celery tasks that have woken a worker, by their list (list)."""
    return f"{PREFIX}tasks:arrived:{name}"


def sent_task(sending: str) -> str:
    """Return the key that notes that what follows a plain Celery task was sent (string)."""
    return f"{PREFIX}tasks:sent:{sending}"


def taken_task(taken_id: str) -> str:
    """Return the key of a plain Celery task that a worker has taken off its queue (hash)."""
    return f"{PREFIX}task:{taken_id}"


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


def state_index(state: str) -> str:
    """Return the key of the jobs in one state (zset)."""
    return f"{JOB_INDEXES}state:{state}"


def tag_index(tag: str) -> str:
    """Return the key of the jobs with one tag (zset)."""
    return f"{JOB_INDEXES}tag:{tag}"


def tenant_index(tenant: str) -> str:
    """Return the key of the jobs of one tenant; the default tenant has none (zset)."""
    return f"{JOB_INDEXES}tenant:{tenant}"


def idempotency(tenant: str, key: str) -> str:
    """Return the key of an idempotency entry of a tenant (hash)."""
    return f"{PREFIX}idempotency:{tenant}:{key}"


def batch(batch_id: str) -> str:
    """Return the key of a batch's record (hash)."""
    return f"{PREFIX}batch:{batch_id}"


def batch_jobs(batch_id: str) -> str:
    """Return the key of a batch's jobs, scored by their place in the input (zset)."""
    return f"{PREFIX}batch_jobs:{batch_id}"


def file(file_id: str) -> str:
    """Return the key of what is known about a file of the gateway (string, JSON)."""
    return f"{PREFIX}file:{file_id}"


def files(tenant: str) -> str:
    """Return the key of a tenant's files, by time of upload (zset)."""
    return f"{PREFIX}files:{tenant}"


def used_tokens(day: int) -> str:
    """Return the key of the tokens that were used on a day, counted from 1970-01-01 (hash)."""
    return f"{USED_TOKENS}:{day}"


def receivers(tenant: str) -> str:
    """Return the key of the receivers of webhooks that a tenant has registered (hash)."""
    return f"{PREFIX}receivers:{tenant}"


def rate(key_id: str) -> str:
    """Return the key of what an API key has left of its limits per minute (hash)."""
    return f"{PREFIX}rate:{key_id}"


def console_session(token_hash: str) -> str:
    """Return the key of a session of the console, by the SHA-256 of its cookie (hash)."""
    return f"{PREFIX}console_session:{token_hash}"


def leftover(job_id: str) -> str:
    """Return the key of what is needed to erase what outlives a job's record (hash)."""
    return f"{PREFIX}leftover:{job_id}"


def leftover_tag(tag: str) -> str:
    """Return the key of the leftovers with one tag (zset)."""
    return f"{LEFTOVERS}:tag:{tag}"


def leftover_tenant(tenant: str) -> str:
    """Return the key of the leftovers of one tenant, the default one included (zset)."""
    return f"{LEFTOVERS}:tenant:{tenant}"


def celery_result(job_id: str) -> str:
    """Return the key of Celery's result of a plain Celery task (string); the name is Celery's."""
    return f"celery-task-meta-{job_id}"


def forgotten(job_id: str) -> str:
    """Return the key that marks a job as forgotten, for an hour (string, empty)."""
    return f"{PREFIX}forgotten:{job_id}"


def event(event_id: str) -> str:
    """Return the key of a webhook event (hash)."""
    return f"{PREFIX}event:{event_id}"


def due_events(class_: str, endpoint: str) -> str:
    """Return the key of an endpoint's waiting events of a class, `live` or `replay` (zset)."""
    return f"{PREFIX}due_events:{class_}:{endpoint}"


def due_endpoints(class_: str, host: str) -> str:
    """Return the key of a host's endpoints with waiting events of a class (zset)."""
    return f"{PREFIX}due_endpoints:{class_}:{host}"


def host_claims(host: str) -> str:
    """Return the key of the deliveries to a host that are in flight (zset)."""
    return f"{PREFIX}host_claims:{host}"


def endpoint(name: str) -> str:
    """Return the key of the state of an endpoint (hash)."""
    return f"{PREFIX}endpoint:{name}"


def host(name: str) -> str:
    """Return the key of the state of a host (hash)."""
    return f"{PREFIX}host:{name}"


def dead(letter_id: str) -> str:
    """Return the key of a dead letter (hash)."""
    return f"{PREFIX}dead:{letter_id}"


def worker(name: str) -> str:
    """Return the key of a worker's heartbeat (string, JSON)."""
    return f"{PREFIX}worker:{name}"


def session_channel(session: str) -> str:
    """Return the pub/sub channel that a worker subscribes to as long as its process lives."""
    return f"{PREFIX}session:{session}"


def channel(job_id: str) -> str:
    """Return the pub/sub channel that reports a job's checkpoints and its end."""
    return f"{PREFIX}events:{job_id}"


def record_version(
    kind: str, *, has_adapter: bool = False, has_media: bool = False, is_steered: bool = False
) -> int:
    """Return the version of the record of a job of a kind."""
    if is_steered:
        return STEERING_VERSION
    if has_media:
        return MEDIA_VERSION
    if has_adapter:
        return ADAPTERS_VERSION
    return PROTOCOL_VERSION if kind == "generate" else KINDS_VERSION


def queue_name(model: str, priority: str) -> str:
    """Return the Celery queue of a served model and a priority class.

    Raises:
        ValueError: the priority is not one of `PRIORITIES`, or the model name has characters
            that a queue name cannot have.
    """
    if priority not in PRIORITIES:
        known = ", ".join(PRIORITIES)
        raise ValueError(f"priority is {priority[:40]!r}; it must be one of {known}")
    if not is_model_name(model):
        raise ValueError(
            f"model is {model[:200]!r}; a served name has 1 to 200 letters, digits and any of "
            "._/:@+- and starts with a letter or digit"
        )
    return f"batchmill.{model}.{priority}"


def queue_names(model: str) -> tuple[str, ...]:
    """Return all queues of a model, highest priority first."""
    return tuple(queue_name(model, priority) for priority in PRIORITIES)


def queue_prefix(model: str) -> str:
    """Return what the names of a model's queues begin with; a priority class follows."""
    return f"batchmill.{model}."


def check_queue(name: str) -> str:
    """Return the name of a queue.

    Raises:
        ValueError: there can be no such queue.
    """
    model, _, priority = name.removeprefix("batchmill.").rpartition(".")
    if not name.startswith("batchmill."):
        raise ValueError(f"{name[:200]!r} is not a queue: give it as `batchmill status` lists it")
    return queue_name(model, priority)
