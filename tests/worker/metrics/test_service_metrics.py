"""The metrics and probes of deliverers and gateways, in processes of their own."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import Client, ProducerSettings, new_secret
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.metrics_ports import metrics_environment
from batchmill.worker.metrics.deliverer_series import DELIVERER_SERIES
from batchmill.worker.metrics.gateway_series import GATEWAY_SERIES
from batchmill.worker.metrics.queue_series import QUEUE_SERIES
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ...support.processes import CLI, accepts, free_port, process, run, wait_until
from ..command_line import call, complete, error_of
from .scrape import Scrape, probe, scrape

LOCAL = {
    "webhook_allow_http": True,
    "webhook_allow_ports": ("1024-65535",),
    "webhook_allow_networks": ("127.0.0.0/8",),
}


def kinds(found: Scrape) -> dict[str, str]:
    return {name: kind for name, kind in found.kinds.items() if name.startswith("batchmill_")}


def expected(*series: object) -> dict[str, str]:
    return {
        each.name.removesuffix("_total") if each.kind.value == "counter" else each.name: (  # type: ignore[attr-defined]
            each.kind.value  # type: ignore[attr-defined]
        )
        for each in series
    }


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


def test_a_deliverer_counts_attempts_and_shows_the_broker(
    redis_url: str, store: JobStore, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "deliverer.log"
    runtime = {"BATCHMILL_RUNTIME_DIR": str(tmp_path)}  # its health files
    environment = {
        **runtime,
        "BATCHMILL_BROKER_URL": redis_url,
        "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
        "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
        "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        "BATCHMILL_WEBHOOK_SECRET": new_secret(),
        "BATCHMILL_METRICS_PORT": str(port),
        "BATCHMILL_METRICS_QUEUES": "true",
    }
    with (
        WebhookReceiver() as receiver,
        process(*CLI, "deliver", environment=environment, log=log),
        Client(redis_url, settings=ProducerSettings(**LOCAL)) as client,  # type: ignore[arg-type]
    ):
        wait_until(lambda: accepts(port), "the metrics")
        wait_until(lambda: probe(port, "/readyz")[0] == 200, "a ready deliverer")
        assert probe(port, "/healthz") == (200, {"status": "ok"})
        job = client.submit(prompt="x", webhook=receiver.url)
        complete(store, job.id)
        assert receiver.wait_for(1, timeout_s=60)
        place = {"outcome": "delivered", "status": "2xx"}

        def is_counted() -> bool:
            found = scrape(port)
            return found.value("batchmill_webhook_attempts_total", **place) == 1

        wait_until(is_counted, "the attempt")
        wait_until(
            lambda: (
                scrape(port).value("batchmill_webhooks_settled_total", outcome="delivered") == 1
            ),
            "the end of the delivery",
        )
        found = scrape(port)
        assert found.value("batchmill_webhook_attempt_seconds_count") == 1
        assert found.value("batchmill_webhooks_waiting") == 0
        conditional = {"batchmill_redis_memory_limit_bytes", "batchmill_tenant_queued_jobs"}
        conditional.add("batchmill_tenant_queued_tokens")
        conditional |= {"batchmill_shard_up", "batchmill_shard_workers_wanted"}  # several brokers
        queues = [each for each in QUEUE_SERIES if each.name not in conditional]
        assert kinds(found) == expected(*DELIVERER_SERIES, *queues)
        # As `batchmill healthcheck` says it.
        assert call("healthcheck", "deliverer", "--ready", **runtime).returncode == 0


def test_a_gateway_counts_requests_by_handler(redis_url: str, tmp_path: Path) -> None:
    port, own, log = free_port(), free_port(), tmp_path / "gateway.log"
    environment = {
        "BATCHMILL_BROKER_URL": redis_url,
        "BATCHMILL_GATEWAY_PORT": str(own),
        "BATCHMILL_GATEWAY_FILES_URL": str(tmp_path / "files"),
        "BATCHMILL_METRICS_PORT": str(port),
    }
    with process(*CLI, "gateway", environment=environment, log=log):
        wait_until(lambda: accepts(own), "the gateway")
        for path, number in (("/v1/models", 2), ("/v1/files/file_secret", 1), ("/nothing", 1)):
            for _ in range(number):
                get(own, path)
        duration = "batchmill_http_request_duration_seconds_count"
        # A request is counted when its reply has been sent, so its sender may be earlier.
        wait_until(lambda: scrape(port).value(duration) == 4, "counting four requests")
        found = scrape(port)
        place = {"handler": "list_models", "method": "GET"}
        assert found.value("batchmill_http_requests_total", **place, status="200") == 2
        place = {"handler": "get_file", "method": "GET"}
        assert found.value("batchmill_http_requests_total", **place, status="404") == 1
        assert found.value(duration) == 4
        assert found.value("batchmill_http_time_to_first_byte_seconds_count") == 4
        assert found.value("batchmill_http_requests_in_flight") == 0
        labels = {value for _, pairs in found.samples for _, value in pairs}
        assert not any("secret" in value or "nothing" in value for value in labels)
        assert kinds(found) == expected(*GATEWAY_SERIES)
        for each in (port, own):
            assert probe(each, "/healthz")[0] == 200
            assert probe(each, "/readyz")[0] == 200
        assert get(own, "/metrics") == 404  # clients must not read them


def get(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_exporter_runs_until_sigterm(redis_url: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "metrics.log"
    environment = {"BATCHMILL_BROKER_URL": redis_url, "BATCHMILL_METRICS_PORT": str(port)}
    with process(*CLI, "metrics", environment=environment, log=log) as exporter:
        wait_until(lambda: accepts(port), "the exporter")
        assert scrape(port).value("batchmill_broker_up") == 1
        assert scrape(port).value("process_resident_memory_bytes") > 0
        assert probe(port, "/readyz")[0] == 200
    assert exporter.returncode == 0
    assert "metrics_served" in log.read_text()


def test_the_programs_of_up_have_ports_of_their_own() -> None:
    given = {"BATCHMILL_METRICS_PORT": "9464"}
    ports = [
        metrics_environment(name, given)["BATCHMILL_METRICS_PORT"]
        for name in ("worker", "deliverer", "gateway")
    ]
    assert ports == ["9464", "9465", "9466"]
    assert metrics_environment("deliverer", given)["BATCHMILL_METRICS_QUEUES"] == "true"
    assert metrics_environment("worker", {}) == {}
    assert metrics_environment("gateway", {"BATCHMILL_METRICS_PORT": "65533"}) == {
        "BATCHMILL_METRICS_PORT": "65535"
    }


@pytest.mark.parametrize("port", ["65534", "65536", "9" * 5000])
def test_up_refuses_a_port_that_leaves_none_for_its_other_programs(port: str) -> None:
    refused = call("up", "--json", BATCHMILL_METRICS_PORT=port)
    assert refused.returncode == 8
    error = error_of(refused)
    assert error["code"] == "invalid_settings"
    assert f"is {port[:20]}; it must be at most 65533" in error["message"]


def test_an_invalid_tenant_is_refused_by_name(redis_url: str) -> None:
    environment = {"BATCHMILL_BROKER_URL": redis_url, "BATCHMILL_METRICS_TENANTS": "no tenant"}
    with pytest.raises(AssertionError, match=r"BATCHMILL_METRICS_TENANTS.*'no tenant'"):
        run(*CLI, "metrics", environment=environment)
