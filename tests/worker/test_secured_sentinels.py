"""Every program through Sentinels with TLS, each as a user with no more rights than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from batchmill.producer import Client, celery_options, celery_tls, celery_url
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore

from ..support.every_program import check_every_program
from ..support.processes import DEADLINE_S, ready_worker
from ..support.secured_service import SecuredService
from ..support.tls import Authority, tls_server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredService]:
    program = tls_server()
    folder = tmp_path_factory.mktemp("secured")
    service = SecuredService(folder / "servers", Authority(folder), program)
    yield service
    service.close()


@pytest.mark.nightly
def test_every_program_works_as_its_own_user(service: SecuredService, tmp_path: Path) -> None:
    users = ("worker", "deliverer", "gateway", "flower", "producer")
    check_every_program({user: service.url_of(user) for user in users}, tmp_path)


def test_a_plain_celery_program_gets_its_result(service: SecuredService, tmp_path: Path) -> None:
    """As docs/failover.md configures it."""
    url = service.url_of("worker")
    app = Celery("shop", broker=celery_url(url), backend=celery_url(url))
    app.conf.broker_transport_options = celery_options(url)
    app.conf.result_backend_transport_options = celery_options(url)
    app.conf.broker_use_ssl = app.conf.redis_backend_use_ssl = celery_tls(url)
    store = JobStore.from_url(service.url_of("producer"))
    further = {"BATCHMILL_RUNTIME_DIR": str(tmp_path)}
    with ready_worker(url, store, tmp_path, further):
        sent = app.send_task(
            "batchmill.generate",
            kwargs={"job": {"prompt": "Once", "max_tokens": 4}},
            queue="batchmill.demo.normal",
        )
        assert sent.get(timeout=DEADLINE_S)["usage"]["completion_tokens"] == 4
    app.close()
    store.close()


def test_the_user_of_the_sentinels_finds_the_primary_and_changes_nothing(
    service: SecuredService,
) -> None:
    with service.sentinel_client() as sentinel:
        assert sentinel.sentinel_get_master_addr_by_name("mill")
        for command in (
            ("SENTINEL", "FAILOVER", "mill"),
            ("SENTINEL", "RESET", "*"),
            ("SHUTDOWN",),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                sentinel.execute_command(*command)


def test_clients_follow_a_failover(service: SecuredService) -> None:
    with Client(service.url_of("producer"), timeout_s=60) as client:
        before = client.submit("before", model="other")
        service.wait_in_step()
        old = service.primary_port()
        service.kill_primary()
        after = client.submit("after", model="other")
        assert service.primary_port() != old
        assert before.status().state is JobState.QUEUED
        assert after.status().state is JobState.QUEUED
