"""`batchmill status ID` says which worker a job waits for that others have left."""

from __future__ import annotations

from typing import Any

from batchmill.producer import Client
from batchmill.producer.protocol.replies import ClaimRefusal
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.left_jobs import describe_left_job

from ...support.pictures import png
from ..command_line import call


def test_the_status_of_a_job_names_what_workers_lack_for_it(
    broker: dict[str, str], store: JobStore, redis_url: str
) -> None:
    part = {"type": "image", "image": png()}
    messages: Any = [{"role": "user", "content": [part]}]
    with Client(redis_url) as client:
        job = client.submit(model="demo", messages=messages)
    assert describe_left_job(store, job.id) is None
    for _ in range(2):
        refusal = store.claim(job.id, owner="w", lease_ms=60_000, identity="m", abilities=())
        assert refusal is ClaimRefusal.NO_DECODER
    shown = " ".join(call("status", job.id, **broker).stdout.split())
    assert "for a worker with decoders of media (image): 2 claims by others" in shown
    store.claim(job.id, owner="w", lease_ms=60_000, identity="m")
    assert describe_left_job(store, job.id) is None
