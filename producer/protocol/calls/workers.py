"""The call that writes a worker's heartbeat."""

from __future__ import annotations

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo, write_worker

from .call import Call


def heartbeat(info: WorkerInfo) -> Call[None]:
    """Write a heartbeat, also if Redis is full."""
    args = (info.name, write_worker(info), keys.WORKER_TTL_S)
    return Call("heartbeat", args, lambda reply: None)
