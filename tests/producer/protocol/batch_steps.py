"""Steps of the batch tests: make lines, end jobs, read events and counts."""

from __future__ import annotations

import json
from typing import Any

from batchmill.producer import BatchStatus
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore

QUEUE = keys.queue_name("demo", "normal")
HOOK = "https://example.com/batches"


def lines(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i}", "custom_id": f"c{i}", "seed": i, **fields} for i in range(number)]


def ids_of(bench: Any, batch_id: str) -> list[str]:
    """Return the jobs of a batch in the order of the input."""
    return [i.decode() for i in bench.redis.zrange(keys.batch_jobs(batch_id), 0, -1)]


def end(store: JobStore, job_id: str, state: JobState = JobState.COMPLETED) -> str:
    """Claim and complete a job; return its fence."""
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    complete(store, job_id, claim.fence, state)
    return claim.fence


def complete(store: JobStore, job_id: str, fence: str, state: JobState) -> None:
    result = {"id": job_id, "model": "demo", "status": state.value, "text": f"about {job_id}"}
    store.complete(job_id, fence=fence, state=state, result=json.dumps(result))


def events(bench: Any) -> list[OutboxEntry]:
    """Claim the events that are due for the receiver of the batch."""
    due = bench.store.outbox_claim(owner="d", limit=100, lease_ms=60_000)
    return [event for event in due if event.url == HOOK]


def counts(batch: BatchStatus) -> tuple[int, int, int]:
    numbers = batch.request_counts
    return numbers.total, numbers.completed, numbers.failed
