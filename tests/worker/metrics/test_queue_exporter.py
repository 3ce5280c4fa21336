"""The exporter of queue figures: its numbers are those of the broker, at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.pauses import Pauses
from batchmill.worker.metrics.probes import Health
from batchmill.worker.metrics.queue_exporter import QueueExporter
from batchmill.worker.metrics.queue_series import QUEUE_SERIES
from batchmill.worker.metrics.server import MetricsServer
from batchmill.worker.service_errors import MetricsFailed

from ...conftest import RedisServer
from ...support.worker_info import worker_info
from .scrape import Scrape, probe, scrape

NORMAL = {
    "queue": keys.queue_name("demo", "normal"),
    "model_name": "demo",
    "priority": "normal",
}


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


@contextmanager
def served(url: str, **options: Any) -> Iterator[int]:
    """Serve an exporter, and yield its port."""
    stores = JobStores.from_url(url, timeout_s=None, part_limit_s=1)
    exporter = QueueExporter(stores, target_s=60, **options)
    server = MetricsServer(
        "127.0.0.1",
        0,
        service="exporter",
        sources=[exporter.read],
        probe=lambda: Health(None, None),
    )
    server.start()
    yield server.port
    server.close()
    stores.close()


@pytest.fixture
def port(redis_url: str) -> Iterator[int]:
    with served(redis_url, tenants=("acme",)) as port:
        yield port


def claim(store: JobStore, job_id: str) -> Claim:
    found = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(found, Claim)
    return found


def test_waiting_jobs_and_tokens_by_queue(port: int, client: Client, store: JobStore) -> None:
    first = client.submit(prompt="x" * 40, max_tokens=100)
    cost = scrape(port).value("batchmill_queued_tokens", **NORMAL)
    assert cost > 100  # the prompt counts, too
    for _ in range(12):  # more than the window of announcements
        client.submit(prompt="x" * 40, max_tokens=100, tenant="acme")
    client.submit(prompt="x", max_tokens=100, delay_s=3600)
    client.submit(prompt="x", max_tokens=5, priority="high", model="org/other")

    found = scrape(port)
    assert found.value("batchmill_queued_jobs", **NORMAL) == 13
    assert found.value("batchmill_delayed_jobs", **NORMAL) == 1
    assert found.value("batchmill_queued_tokens", **NORMAL) == 13 * cost
    assert found.value("batchmill_announced_jobs", **NORMAL) == keys.DEFAULT_WINDOW_JOBS
    assert found.value("batchmill_queue_served", **NORMAL) == 0
    other = {"queue": keys.queue_name("org/other", "high"), "model_name": "org/other"}
    assert found.value("batchmill_queued_jobs", **other, priority="high") == 1
    assert found.value("batchmill_tenant_queued_jobs", tenant="acme") == 12
    assert found.value("batchmill_jobs_submitted_total") == 15

    claim(store, first.id)
    found = scrape(port)
    assert found.value("batchmill_queued_tokens", **NORMAL) == 12 * cost
    assert found.value("batchmill_queued_jobs", **NORMAL) == 12


def test_only_tenants_on_the_list_have_series(port: int, client: Client) -> None:
    client.submit(prompt="a secret prompt", tenant="acme", tags=["tag-1"])
    client.submit(prompt="a secret prompt", tenant="umbrella")
    found = scrape(port)
    labels = {pair for _, pairs in found.samples for pair in pairs}
    assert ("tenant", "acme") in labels
    shown = {value for _, value in labels}
    assert not shown & {"umbrella", "tag-1"}
    assert not any("secret" in value for value in shown)


def test_jobs_of_a_paused_tenant_wait_as_well(port: int, client: Client, store: JobStore) -> None:
    Pauses(store).pause(PauseKind.TENANT, "acme")
    Pauses(store).pause(PauseKind.QUEUE, NORMAL["queue"])
    client.submit(prompt="x", max_tokens=5, tenant="acme")
    found = scrape(port)
    assert found.value("batchmill_queued_jobs", **NORMAL) == 1
    assert found.value("batchmill_delayed_jobs", **NORMAL) == 0
    assert found.value("batchmill_queue_paused", **NORMAL) == 1


def test_the_age_of_the_oldest_job(port: int, client: Client, store: JobStore) -> None:
    jobs = [client.submit(prompt="x", max_tokens=5) for _ in range(10)]
    # The first is announced, the last waits in the backlog.
    minute_ago_us = (time.time() - 60) * 1e6
    store.client.hset(keys.job(jobs[0].id), "backlog_at_us", str(minute_ago_us))
    age_s = scrape(port).value("batchmill_oldest_queued_age_seconds", **NORMAL)
    assert 59 < age_s < 120
    hour_ago_us = (time.time() - 3600) * 1e6
    store.client.zadd(keys.backlog(NORMAL["queue"], "default"), {jobs[-1].id: hour_ago_us})
    age_s = scrape(port).value("batchmill_oldest_queued_age_seconds", **NORMAL)
    assert 3599 < age_s < 3700


def test_workers_backlog_and_workers_wanted(port: int, client: Client, store: JobStore) -> None:
    stats = {"jobs": 3, "tokens_per_s": 50.0, "busy_tokens_per_s": 2.0}
    store.announce_worker(worker_info("w1", stats=stats))
    store.announce_worker(worker_info("w2", state="starting"))
    client.submit(prompt="x", max_tokens=1000)
    found = scrape(port)
    tokens = found.value("batchmill_queued_tokens", **NORMAL)
    assert found.value("batchmill_workers", model_name="demo", state="ready") == 1
    assert found.value("batchmill_workers", model_name="demo", state="starting") == 1
    assert found.value("batchmill_queue_served", **NORMAL) == 1
    assert found.value("batchmill_running_jobs", model_name="demo") == 3
    assert found.value("batchmill_tokens_per_second", model_name="demo") == 50
    assert found.value("batchmill_backlog_seconds", model_name="demo") == tokens / 2
    wanted = found.value("batchmill_workers_wanted", model_name="demo")
    assert wanted == -(-tokens // (2 * 60))


def test_dead_letters_by_kind_and_totals(port: int, client: Client, store: JobStore) -> None:
    for number in range(3):
        store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE,
            reason="r",
            payload=b"p",
            source="q",
            letter_id=f"m{number}",
        )
    store.client.zadd(keys.DEAD, {b"\xff forged": 1})
    job = client.submit(prompt="x")
    job.cancel()
    found = scrape(port)
    assert found.value("batchmill_dead_letters", kind="message") == 3
    assert found.value("batchmill_dead_letters", kind="job") == 0
    assert found.value("batchmill_dead_letters", kind="unusable") == 1
    assert found.value("batchmill_jobs_ended_total", state="cancelled") == 1
    assert found.value("batchmill_webhooks_settled_total", outcome="delivered") == 0
    store.dead_letter_drop("m0")
    assert scrape(port).value("batchmill_dead_letters", kind="message") == 2


def test_lost_leases_and_waiting_webhooks(port: int, client: Client, store: JobStore) -> None:
    job = client.submit(prompt="x", webhook="https://example.com/hook")
    claim(store, job.id)
    store.client.zadd(keys.LEASES, {job.id: 1})
    store.sweep()
    found = scrape(port)
    assert found.value("batchmill_lease_expirations_total") == 1
    assert found.value("batchmill_attempts_requeued_total", cause="lease_expired") == 1
    assert found.value("batchmill_webhooks_waiting") == 0
    job.cancel()
    for event_id in cast("list[bytes]", store.client.zrange(keys.OUTBOX, 0, -1)):
        store.client.zadd(keys.OUTBOX, {event_id: 1})
    found = scrape(port)
    assert found.value("batchmill_webhooks_waiting") == 1
    assert found.value("batchmill_webhook_oldest_seconds") > 10**9


def test_the_catalogue_lists_exactly_what_is_shown(redis_server: RedisServer) -> None:
    store = JobStore.from_url(redis_server.url)
    store.client.config_set("maxmemory", "100mb")
    with served(redis_server.url, tenants=("acme",)) as port, Client(redis_server.url) as client:
        client.submit(prompt="x")
        stats = {"jobs": 0, "tokens_per_s": 1.0, "busy_tokens_per_s": 2.0}
        store.announce_worker(worker_info("w1", stats=stats))
        found = scrape(port)
    store.close()
    own = {name for name in found.names if name.startswith("batchmill_")}
    assert own == {series.name for series in QUEUE_SERIES if "shard" not in series.labels}
    assert_kinds_and_labels(found)


def assert_kinds_and_labels(found: Scrape) -> None:
    series = {each.name: each for each in QUEUE_SERIES}
    for name, labels in found.samples:
        if name in series:
            assert {label for label, _ in labels} == set(series[name].labels), name
            assert found.kinds[name.removesuffix("_total")] == series[name].kind.value


def test_an_outage_of_redis_is_shown(private_redis_server: RedisServer) -> None:
    with served(private_redis_server.url) as port:
        assert scrape(port).value("batchmill_broker_up") == 1
        private_redis_server.kill()
        found = scrape(port)
        assert found.value("batchmill_broker_up") == 0
        assert "batchmill_queued_jobs" not in found.names
        private_redis_server.start()
        assert scrape(port).value("batchmill_broker_up") == 1


def test_while_a_shard_is_away_the_figures_of_the_others_stay_and_it_is_named(
    redis_server: RedisServer, private_redis_server: RedisServer
) -> None:
    url = f"a={redis_server.url} b={private_redis_server.url}"
    stats = {"jobs": 0, "busy_tokens_per_s": 0.5}
    with served(url, tenants=("t0",)) as port, Client(url) as client:
        for tenant in ("t0", "t0", "t1"):  # the first goes to a, the second to b
            client.submit("x", tenant=tenant, max_tokens=50)
        for server in (redis_server, private_redis_server):
            store = JobStore.from_url(server.url)
            store.announce_worker(worker_info("w", stats=stats))
            store.close()
        both = scrape(port)
        private_redis_server.kill()
        found = scrape(port)
        with served(url) as other_port:
            late = scrape(other_port)
        private_redis_server.start()
        again = scrape(port)
    shards = [("a", "b"), ("a",), ("a",), ("a", "b")]
    for one, up in zip((both, found, late, again), shards, strict=True):
        assert one.value("batchmill_broker_up") == 1
        assert [one.value("batchmill_shard_up", shard=name) for name in "ab"] == [
            float(name in up) for name in "ab"
        ]
    assert both.value("batchmill_queued_jobs", **NORMAL) == 3
    assert found.value("batchmill_queued_jobs", **NORMAL) == 2
    assert found.value("batchmill_tenant_queued_jobs", tenant="t0") == 2
    # A total does not fall, and no worker is given up.
    assert found.value("batchmill_jobs_submitted_total") == 3
    assert "batchmill_jobs_submitted_total" not in late.names
    wanted = [
        both.value("batchmill_shard_workers_wanted", shard=name, model_name="demo") for name in "ab"
    ]
    assert min(wanted) >= 1
    assert found.value("batchmill_workers_wanted", model_name="demo") == sum(wanted)
    assert late.value("batchmill_workers_wanted", model_name="demo") == wanted[0]
    assert_kinds_and_labels(found)


def test_probes_and_other_paths() -> None:
    health = Health("it stands still", "it is shutting down")
    server = MetricsServer("127.0.0.1", 0, service="x", sources=[], probe=lambda: health)
    server.start()
    assert probe(server.port, "/healthz") == (
        503,
        {"status": "unavailable", "problem": "it stands still"},
    )
    health = Health(None, "it is shutting down")
    assert probe(server.port, "/healthz?x=1") == (200, {"status": "ok"})
    assert probe(server.port, "/readyz")[1]["problem"] == "it is shutting down"
    assert probe(server.port, "/")[0] == 404
    with pytest.raises(MetricsFailed, match="BATCHMILL_METRICS_PORT"):
        MetricsServer("127.0.0.1", server.port, service="x", sources=[], probe=lambda: health)
    server.close()
