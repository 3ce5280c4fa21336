"""The traces of a run in Redis, at the receiver and in the log of tokens, as plain values."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from batchmill.producer import Client
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.records import JobRecord
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store import batches
from batchmill.producer.store.ended_jobs import chunks
from batchmill.producer.store.job_store import JobStore

from .receiver import Deliveries
from .traffic import BOMB_PREFIX, FOLLOW_UP_QUEUE, TAG, Submitted

_POLL_S = 0.1
_JOBS_AT_ONCE = 200
#: Keys that stay: who works here, what was counted, and Celery's own notes about queues.
_REGISTRIES = (
    *(keys.QUEUES, keys.WORKERS, keys.SESSIONS, keys.TOTALS, keys.TENANTS, keys.BATCHES),
    keys.USED_TOKENS,  # sums for bills outlive the jobs
    *(keys.used(""), keys.REPAIR, keys.MEMORY, keys.CLOCK, keys.LAST_SWEEP),
    *(keys.SETTLED_EVENTS, keys.SERVED, "_kombu.binding"),
)
#: Key prefix of Celery's results.
CELERY_RESULT = "celery-task-meta-"


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """How one job ended."""

    job_id: str
    #: None if its record is gone.
    state: JobState | None
    text: str = ""
    error_code: str = ""
    attempts: int = 0
    suspect: int = 0
    crashes: int = 0
    #: Its claims, oldest first.
    history: tuple[Attempt, ...] = ()
    #: Unix time; 0 if it has not ended.
    finished_at_ms: int = 0
    #: Status and text of Celery's result; empty without one.
    celery_status: str = ""
    celery_text: str = ""
    #: Tokens that engines computed for it, and distinct ones of them.
    num_computed: int = 0
    num_distinct: int = 0


@dataclass(frozen=True, slots=True)
class ObservedBatch:
    """How one batch ended."""

    batch_id: str
    state: str
    total: int
    completed: int
    failed: int


@dataclass(slots=True)
class Observed:
    """Everything that the oracle judges."""

    #: By the job's name in the plan.
    jobs: dict[str, ObservedJob] = field(default_factory=dict)
    #: By the order's number.
    batches: dict[int, ObservedBatch] = field(default_factory=dict)
    #: Messages in the queue of follow-ups, by task id.
    follow_ups: Counter[str] = field(default_factory=Counter)
    deliveries: Deliveries = field(default_factory=Deliveries)
    #: Ids of dead letters.
    dead_letters: dict[str, str] = field(default_factory=dict)
    submitted: Submitted = field(default_factory=Submitted)
    #: Keys that are left after everything was forgotten.
    leftovers: list[str] = field(default_factory=list)


def wait_until_settled(
    store: JobStore, submitted: Submitted, timeout_s: float, tick: Callable[[], None]
) -> bool:
    """Wait until no job, event or report is under way; return False if it took too long.

    Args:
        store: reads Redis.
        submitted: the ids of the jobs.
        timeout_s: limit in seconds.
        tick: called again and again meanwhile.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        tick()
        try:
            if not open_work(store, submitted):
                return True
        except redis.RedisError:
            pass  # it has just been started again
        time.sleep(_POLL_S)
    return False


def open_work(store: JobStore, submitted: Submitted) -> list[str]:
    """Return what is still under way, in words; empty if all is settled."""
    client: Any = store.client
    counts = store.counts()
    numbers = {
        "jobs queued": counts.queued,
        "jobs in progress": counts.in_progress,
        "jobs scheduled": counts.scheduled,
        "events in the outbox": counts.outbox,
        "documents in the inbox": counts.inbox,
        "ends to report to Celery": client.zcard(keys.CELERY_ENDS),
        "plain tasks taken": client.zcard(keys.TASKS_TAKEN),
        "plain tasks waiting": sum(client.llen(depth.queue) for depth in store.queue_depths()),
        "structures not refused yet": _num_open_bombs(store, submitted),
    }
    found = [f"{number} {what}" for what, number in numbers.items() if number]
    return found or _open_jobs(store, submitted)


def _open_jobs(store: JobStore, submitted: Submitted) -> list[str]:
    """Return the jobs without a record or an end."""
    ids = [
        job_id
        for name, job_id in list(submitted.job_ids.items())
        if not name.startswith(BOMB_PREFIX)
    ]
    found = []
    for some in chunks(ids, _JOBS_AT_ONCE):
        states = store.read(reads.job_states(some))
        found += [
            f"{job_id}: {state or 'no record'}"
            for job_id, state in zip(some, states, strict=True)
            if state is None or not state.is_terminal
        ]
    return found


def _num_open_bombs(store: JobStore, submitted: Submitted) -> int:
    """Return how many bombs were neither refused by Celery nor made a dead letter yet."""
    client: Any = store.client
    ids = [job_id for name, job_id in submitted.job_ids.items() if name.startswith(BOMB_PREFIX)]
    found = [client.exists(keys.dead(job_id), CELERY_RESULT + job_id) for job_id in ids]
    return found.count(0)


def observe(
    store: JobStore, submitted: Submitted, deliveries: Deliveries, trace_path: Path
) -> Observed:
    """Read everything, before it is forgotten."""
    observed = Observed(deliveries=deliveries, submitted=submitted)
    for number, batch_id in submitted.batch_ids.items():
        _read_batch(store, observed, number, batch_id)
    computed = _read_trace(trace_path)
    for names in chunks(list(submitted.job_ids), _JOBS_AT_ONCE):
        _read_jobs(store, observed, names, computed)
    client: Any = store.client
    for element in client.lrange(FOLLOW_UP_QUEUE, 0, -1):
        observed.follow_ups[json.loads(element)["headers"]["id"]] += 1
    letters = store.dead_letters(limit=100_000)
    observed.dead_letters = {letter.id: letter.reason for letter in letters}
    return observed


def _read_batch(store: JobStore, observed: Observed, number: int, batch_id: str) -> None:
    (status,) = store.read(batches.batches([batch_id]))
    if status is None:
        return
    counts = status.request_counts
    observed.batches[number] = ObservedBatch(
        batch_id, status.status.value, counts.total, counts.completed, counts.failed
    )
    after = -1
    while page := store.read(batches.batch_page(batch_id, after)):
        for index, job_id in page:
            observed.submitted.job_ids[f"{number}.{index}"] = job_id
            after = index


def _read_jobs(
    store: JobStore,
    observed: Observed,
    names: Sequence[str],
    computed: dict[str, tuple[int, int]],
) -> None:
    client: Any = store.client
    ids = [observed.submitted.job_ids[name] for name in names]
    results = client.mget([CELERY_RESULT + job_id for job_id in ids])
    for name, job_id, result in zip(names, ids, results, strict=True):
        record = store.load(job_id)
        observed.jobs[name] = _observed_job(
            job_id, record, json.loads(result or b"{}"), *computed.get(job_id, (0, 0))
        )


def _observed_job(
    job_id: str,
    record: JobRecord | None,
    celery: dict[str, Any],
    num_computed: int,
    num_distinct: int,
) -> ObservedJob:
    celery_result = celery.get("result")
    celery_text = celery_result.get("text", "") if isinstance(celery_result, dict) else ""
    status = celery.get("status", "")
    if record is None:
        return ObservedJob(job_id, None, celery_status=status, celery_text=celery_text)
    return ObservedJob(
        job_id,
        record.state,
        text=json.loads(record.result or b"{}").get("text", ""),
        error_code=json.loads(record.error or b"{}").get("code", ""),
        attempts=record.attempts,
        suspect=record.suspect,
        crashes=record.crashes,
        history=tuple(record.history),
        finished_at_ms=record.finished_at_ms or 0,
        celery_status=status,
        celery_text=celery_text,
        num_computed=num_computed,
        num_distinct=num_distinct,
    )


def _read_trace(path: Path) -> dict[str, tuple[int, int]]:
    """Return how many tokens engines computed per job, and how many distinct ones."""
    if not path.exists():
        return {}
    computed: Counter[str] = Counter()
    distinct: dict[str, set[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            request_id, _, position = line.rstrip().rpartition(" ")
            job_id, _, _ = request_id.partition(".")
            computed[job_id] += 1
            distinct.setdefault(job_id, set()).add(position)
    return {job_id: (number, len(distinct[job_id])) for job_id, number in computed.items()}


def forget_all(client: Client, store: JobStore) -> list[str]:
    """Forget every job, drop what the bombs left, and return the keys that should not be left."""
    client.forget_where(tag=TAG)
    for letter in store.dead_letters(limit=100_000):
        store.dead_letter_drop(letter.id)
    raw: Any = store.client
    raw.delete(FOLLOW_UP_QUEUE)
    left = []
    for key in raw.scan_iter(count=1000):
        name = key.decode(errors="replace")
        if not name.startswith(_REGISTRIES) and raw.ttl(key) == -1:
            left.append(name)
    return sorted(left)
