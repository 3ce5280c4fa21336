"""A worker's heartbeat, for tests without a worker."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo


def worker_info(name: str, **changes: Any) -> WorkerInfo:
    """Return the heartbeat of a worker that is ready and serves the model "demo"."""
    fields: dict[str, Any] = {
        "name": name,
        "model": "demo",
        "identity": "abc",
        "queues": keys.queue_names("demo"),
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "started_at_ms": 5,
        "state": "ready",
        "versions": (1,),
    }
    return WorkerInfo(**(fields | changes))
