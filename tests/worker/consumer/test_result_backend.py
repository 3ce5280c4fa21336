"""What Celery is told about a job does not depend on a Redis that fails during the report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.missing_results import MissingResults
from batchmill.worker.settings import WorkerSettings

from ...conftest import RedisServer

pytestmark = [
    # Of Celery's own calls of redis-py; in a worker's process they are not shown.
    pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning"),
]


def app_on(url: str) -> Celery:
    """Return a worker's app whose reports are not repeated, so that a test sees each error."""
    app = create_app(WorkerSettings(broker_url=url, engine="stub"))
    app.conf.result_backend_always_retry = False
    return app


@pytest.mark.parametrize(
    "error", [ConnectionError("cut"), OutOfMemoryError("full"), OperationalError("no broker")]
)
def test_an_error_of_redis_is_not_stored_as_the_failure_of_a_task(
    redis_url: str, error: Exception
) -> None:
    backend: Any = app_on(redis_url).backend

    with pytest.raises(type(error)):
        backend.mark_as_failure("t", error)
    assert backend.get_state("t") == "PENDING"
    backend.mark_as_failure("t", ValueError("the task's own"))
    assert backend.get_state("t") == "FAILURE"


def test_the_backend_leaves_a_server_that_has_become_a_replica(
    private_redis_server: RedisServer,
) -> None:
    backend: Any = app_on(private_redis_server.url).backend
    backend.mark_as_done("before", "x")
    before = backend.client.client_id()
    backend.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(ReadOnlyError):
        backend.mark_as_done("after", "x")

    assert backend.client.client_id() != before


def complete_task(store: JobStore, **workflow: str) -> None:
    """Let task "t" complete at a worker that died before its report, a long time ago."""
    fields: dict[str, Any] = {"celery_result": True, **workflow}
    new = prepare(GenerationJob(prompt="x"), ProducerSettings(), job_id="t")
    store.adopt(replace(new, **fields))
    claim = store.claim("t", owner="dead", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    text = json.dumps({"id": "t", "model": "demo", "status": "completed", "text": "all of it"})
    store.complete("t", fence=claim.fence, state=JobState.COMPLETED, result=text)
    store.client.zadd(keys.CELERY_ENDS, {"t": 0})


def let_lease_on_end_lapse(store: JobStore) -> None:
    store.client.zadd(keys.CELERY_ENDS, {"t": 0}, xx=True)


def test_a_report_that_redis_refused_is_made_later(redis_server: RedisServer) -> None:
    store = JobStore.from_url(redis_server.url)
    complete_task(store)
    app = app_on(redis_server.url)
    missing = MissingResults(store, app)

    store.client.config_set("maxmemory", "1")
    with pytest.raises(OutOfMemoryError):
        missing.write_missing()
    assert store.client.zcard(keys.CELERY_ENDS) == 1
    store.client.config_set("maxmemory", "0")
    let_lease_on_end_lapse(store)
    missing.write_missing()

    assert app.AsyncResult("t").get(timeout=60)["text"] == "all of it"
    assert store.client.zcard(keys.CELERY_ENDS) == 0
    store.close()


def test_what_follows_a_task_is_sent_later_if_it_cannot_be_sent_now(
    redis_server: RedisServer,
) -> None:
    store, app = JobStore.from_url(redis_server.url), app_on(redis_server.url)
    following = [dict(app.signature("shop.next", queue="shop"))]
    complete_task(store, celery_headers="{}", celery_embed=json.dumps({"chain": following}))
    cut_off = app_on(redis_server.url)
    cut_off.conf.update(broker_write_url="redis://127.0.0.1:1/0", task_publish_retry=False)

    MissingResults(store, cut_off).write_missing()
    assert store.client.llen("shop") == 0
    let_lease_on_end_lapse(store)
    MissingResults(store, app).write_missing()

    assert store.client.llen("shop") == 1
    assert app.AsyncResult("t").get(timeout=60)["text"] == "all of it"
    assert store.client.zcard(keys.CELERY_ENDS) == 0
    store.close()


def test_a_chord_whose_last_reporter_died_gets_its_body_when_its_claim_has_run_out(
    redis_server: RedisServer,
) -> None:
    store, app = JobStore.from_url(redis_server.url), app_on(redis_server.url)
    body = dict(app.signature("shop.body", queue="shop"))
    complete_task(
        store,
        celery_headers=json.dumps({"group": "g", "group_index": 0}),
        celery_embed=json.dumps({"chord": body}),
    )
    app.backend.set_chord_size("g", 1)
    claim_key = app.backend.get_key_for_group("g", ".c")
    store.client.set(claim_key, "of a process that is gone")
    missing = MissingResults(store, app)

    missing.write_missing()
    assert store.client.llen("shop") == 0
    store.client.delete(claim_key)  # it runs out
    let_lease_on_end_lapse(store)
    missing.write_missing()

    assert store.client.llen("shop") == 1
    assert store.client.zcard(keys.CELERY_ENDS) == 0
    store.close()
