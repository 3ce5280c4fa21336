"""A Redis that replies with an error, instead of being gone, ends no worker and no job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ...support.server_refusals import REFUSALS, refused
from ..conftest import Mill, WorkerProcess

SLOW = {"step_time_s": 0.02}


@dataclass
class Site:
    """A server that refuses calls from time to time, and the worker that outlives it."""

    server: RedisServer
    mill: Mill
    worker: WorkerProcess


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = RedisServer("--appendonly", "yes")
    server.start()
    mill = Mill(server.url, tmp_path_factory.mktemp("refused"))
    yield Site(server, mill, mill.start_worker(stub=SLOW))
    mill.close()
    server.close()


def check_refusal(site: Site, word: str) -> None:
    """Check that a job which runs during the refusal ends once, and that the worker goes on."""
    mill, worker = site.mill, site.worker
    running = mill.submit(f"under {word}", max_tokens=150)
    mill.wait_tokens(running, 8)
    num_logged = len(worker.log)

    with refused(word, site.server):
        mill.wait_for(lambda: "redis_unavailable" in worker.log[num_logged:], "the refusal")
        time.sleep(1)

    (record,) = mill.wait_ended(running)
    assert (record.state, record.attempts, record.suspect) == (JobState.COMPLETED, 1, 0)
    later = mill.submit("later", max_tokens=3)
    assert mill.wait_ended(later)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None


@pytest.mark.parametrize("word", sorted(REFUSALS.keys() - {"LOADING"}))
def test_a_worker_outlives_a_server_that_refuses_calls(site: Site, word: str) -> None:
    check_refusal(site, word)


def test_a_worker_outlives_a_server_that_loads(
    private_redis_server: RedisServer, private_mill: Mill
) -> None:
    """On its own server: one that could not save does not write the file that is loaded here."""
    worker = private_mill.start_worker(stub=SLOW)
    check_refusal(Site(private_redis_server, private_mill, worker), "LOADING")


def test_a_worker_outlives_lists_of_another_type(mill: Mill) -> None:
    queue = keys.queue_name("demo", "normal")
    mill.store.client.set(queue, "not a list")
    worker = mill.start_worker()
    mill.wait_for(lambda: '"thread": "tasks"' in worker.log, "the refusal of plain tasks")
    mill.store.client.set(keys.announced(queue), "not a list")
    mill.wait_for(lambda: "Connection to broker lost" in worker.log, "the refusal")
    mill.store.client.delete(queue, keys.announced(queue))

    job_id = mill.submit(max_tokens=3)
    kwargs = {"job": {"prompt": "x", "max_tokens": 3}}
    plain = mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=queue)
    assert plain.get(timeout=60)["status"] == "completed"

    assert mill.wait_ended(job_id)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None
