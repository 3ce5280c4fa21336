"""`batchmill status` and `doctor` say what a job waits for that no worker can run."""

from __future__ import annotations

import json
from typing import Any

from batchmill.producer import Client
from batchmill.producer.protocol.replies import ClaimRefusal
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.left_jobs import describe_left_job

from ...support.pictures import png
from ...support.worker_info import worker_info
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


def test_a_job_with_a_picture_says_that_no_worker_of_its_model_decodes_any(
    broker: dict[str, str], store: JobStore, redis_url: str
) -> None:
    with Client(redis_url) as client:
        messages: Any = [{"role": "user", "content": [{"type": "image", "image": png()}]}]
        job = client.submit(model="demo", messages=messages)
        text = client.submit("Only text.", model="demo")

    beats: dict[str, Any] = {}

    def call_while_they_live(*arguments: str) -> str:
        for name, changes in beats.items():
            store.announce_worker(worker_info(name, **changes))
        return call(*arguments, **broker).stdout

    def told() -> tuple[str | None, list[str], str, str]:
        """What both status commands and the doctor say: of the job, and of the model."""
        of_job = json.loads(call_while_they_live("status", job.id, "--json"))["waits"]
        status = json.loads(call_while_they_live("status", "--json"))
        shown = call_while_they_live("status"), call_while_they_live("doctor")
        return of_job, status["models_without_decoders"], *shown

    shortage = "no live worker of demo can decode pictures or sounds: install the extra media"
    beats["plain"] = {"media": (), "lacks": ("media",)}
    beats["other"] = {"model": "text", "media": ()}
    of_job, models, *shown = told()
    assert of_job is not None
    assert of_job.startswith("for a worker with decoders of media (image): 0 claims by others; ")
    assert shortage in of_job
    assert models == ["demo"]
    assert all(shortage in " ".join(each.split()) for each in shown)
    assert json.loads(call("status", text.id, "--json", **broker).stdout)["waits"] is None

    beats["able"] = {"media": ("image",)}  # one is enough
    of_job, models, *shown = told()
    assert of_job is None
    assert models == []
    assert not any(shortage in " ".join(each.split()) for each in shown)

    beats["able"]["state"] = "starting"  # it may turn out to be able
    assert told()[1] == []
