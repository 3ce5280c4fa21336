"""The sweep continues until nothing is left."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs.sweeper import Sweeper
from batchmill.worker.settings import WorkerSettings


def test_index_entries_of_many_records_that_expired_at_once_are_all_removed(redis_url: str) -> None:
    store = JobStore.from_url(redis_url)
    client: Any = store.client
    ids = [f"j{number}" for number in range(1200)]
    client.zadd(keys.state_index("failed"), dict.fromkeys(ids, 5))
    client.zadd(keys.tag_index("t"), dict.fromkeys(ids, 5))
    client.zadd(keys.EXPIRING, {f"{job_id}\nfailed\ndefault\nt": 5 for job_id in ids})

    Sweeper(store, WorkerSettings()).sweep()

    assert client.keys(keys.JOB_INDEXES + "*") == []
    store.close()
