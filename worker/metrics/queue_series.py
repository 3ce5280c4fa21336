"""The series of queues, workers, dead letters and webhooks, of the whole broker.

One exporter shows them, `batchmill metrics` or one deliverer: if each worker did, sums over all of
them would count everything several times.
"""

from __future__ import annotations

from typing import Final

from .series import Kind, Series

_QUEUE: Final = ("queue", "model_name", "priority")
_MODEL: Final = ("model_name",)


def _gauge(name: str, meaning: str, labels: tuple[str, ...] = ()) -> Series:
    return Series(f"batchmill_{name}", Kind.GAUGE, meaning, labels)


def _counter(name: str, meaning: str, labels: tuple[str, ...] = ()) -> Series:
    return Series(f"batchmill_{name}_total", Kind.COUNTER, meaning, labels)


BROKER_UP: Final = _gauge(
    "broker_up",
    "1 if Redis, or any shard, replied to this scrape, otherwise 0, and then no sum is shown.",
)
SHARD_UP: Final = _gauge(
    "shard_up",
    "1 if the shard replied to this scrape, otherwise 0, and then sums are without it; missing "
    "with one broker.",
    ("shard",),
)
SHARD_WORKERS_WANTED: Final = _gauge(
    "shard_workers_wanted",
    "The wanted workers of one shard, which keep their last number while it is away; missing with "
    "one broker.",
    ("shard", "model_name"),
)
QUEUED_JOBS: Final = _gauge("queued_jobs", "Jobs that wait and are not delayed.", _QUEUE)
DELAYED_JOBS: Final = _gauge("delayed_jobs", "Jobs whose delay is not over.", _QUEUE)
QUEUED_TOKENS: Final = _gauge(
    "queued_tokens",
    "Estimated tokens of the waiting jobs that are not delayed: prompts, and outputs at most.",
    _QUEUE,
)
ANNOUNCED_JOBS: Final = _gauge(
    "announced_jobs", "Messages that announce jobs to workers: a small window of them.", _QUEUE
)
OLDEST_QUEUED_AGE: Final = _gauge(
    "oldest_queued_age_seconds",
    "Seconds since the oldest waiting job was submitted or its delay ended; 0 without one.",
    _QUEUE,
)
QUEUE_SERVED: Final = _gauge("queue_served", "1 if a worker serves the queue, otherwise 0.", _QUEUE)
QUEUE_PAUSED: Final = _gauge(
    "queue_paused", "1 if an operator has paused the queue, otherwise 0.", _QUEUE
)
BACKLOG: Final = _gauge(
    "backlog_seconds",
    "Waiting tokens over the tokens per second of the ready workers. Missing if jobs wait and the "
    "speed is unknown.",
    _MODEL,
)
WORKERS_WANTED: Final = _gauge(
    "workers_wanted", "Workers that would work off what waits within the target.", _MODEL
)
CAPACITY: Final = _gauge(
    "capacity_tokens_per_second",
    "Tokens per second, prompts included, that the ready workers compute while they have work.",
    _MODEL,
)
SPEED: Final = _gauge(
    "tokens_per_second", "Tokens that all workers generated per second, lately.", _MODEL
)
RUNNING_JOBS: Final = _gauge("running_jobs", "Jobs that workers hold.", _MODEL)
WORKERS: Final = _gauge(
    "workers", "Workers that are alive, by state: starting, ready or draining.", (*_MODEL, "state")
)
JOBS_SUBMITTED: Final = _counter("jobs_submitted", "Jobs that were accepted.")
JOBS_ENDED: Final = _counter(
    "jobs_ended", "Jobs that ended, by state: completed, failed, cancelled or expired.", ("state",)
)
JOBS_RETRIED: Final = _counter("jobs_retried", "Jobs that an operator or client ran again.")
ATTEMPTS_REQUEUED: Final = _counter(
    "attempts_requeued",
    "Attempts that ended without an end of their job, by cause; the job goes back to its queue.",
    ("cause",),
)
LEASE_EXPIRATIONS: Final = _counter(
    "lease_expirations", "Leases that ran out: their worker stood still or was cut off."
)
DEAD_LETTERS: Final = _gauge(
    "dead_letters",
    "Dead letters that are kept, by kind: job, message, webhook or unusable.",
    ("kind",),
)
DEAD_LETTERS_DROPPED: Final = _counter(
    "dead_letters_dropped", "Dead letters that were dropped because too many were kept."
)
INBOX_DOCUMENTS: Final = _gauge("inbox_documents", "Documents in the inbox that are not jobs yet.")
WEBHOOKS_SETTLED: Final = _counter(
    "webhooks_settled",
    "Webhook events whose delivery ended, by outcome: delivered, exhausted, disabled or refused.",
    ("outcome",),
)
WEBHOOKS_WAITING: Final = _gauge("webhooks_waiting", "Webhook events that wait for delivery.")
WEBHOOK_OLDEST: Final = _gauge(
    "webhook_oldest_seconds", "Age of the oldest event that waits for delivery; 0 without one."
)
REDIS_MEMORY: Final = _gauge("redis_memory_bytes", "Memory that Redis uses.")
REDIS_MEMORY_LIMIT: Final = _gauge(
    "redis_memory_limit_bytes", "`maxmemory` of Redis; missing if it is not set."
)
TENANT_JOBS: Final = _gauge(
    "tenant_queued_jobs",
    "Waiting jobs of a tenant that `BATCHMILL_METRICS_TENANTS` names, delayed ones included.",
    ("tenant",),
)
TENANT_TOKENS: Final = _gauge(
    "tenant_queued_tokens", "Estimated tokens of these jobs.", ("tenant",)
)

QUEUE_SERIES: Final = (
    *(BROKER_UP, SHARD_UP, SHARD_WORKERS_WANTED),
    *(QUEUED_JOBS, DELAYED_JOBS, QUEUED_TOKENS, ANNOUNCED_JOBS, OLDEST_QUEUED_AGE),
    *(QUEUE_SERVED, QUEUE_PAUSED, BACKLOG, WORKERS_WANTED, CAPACITY, SPEED, RUNNING_JOBS, WORKERS),
    *(JOBS_SUBMITTED, JOBS_ENDED, JOBS_RETRIED, ATTEMPTS_REQUEUED, LEASE_EXPIRATIONS, DEAD_LETTERS),
    *(DEAD_LETTERS_DROPPED, INBOX_DOCUMENTS, WEBHOOKS_SETTLED, WEBHOOKS_WAITING, WEBHOOK_OLDEST),
    *(REDIS_MEMORY, REDIS_MEMORY_LIMIT, TENANT_JOBS, TENANT_TOKENS),
)
