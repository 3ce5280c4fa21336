"""The HTTP server of metrics, when what it shows cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from structlog.testing import capture_logs

from batchmill.worker.metrics.probes import Health
from batchmill.worker.metrics.queue_series import BROKER_UP
from batchmill.worker.metrics.series import Reading, number
from batchmill.worker.metrics.server import MetricsServer

from .scrape import probe, scrape


def test_an_error_in_a_scrape_is_logged_and_told_to_the_client() -> None:
    is_broken = True

    def read() -> Iterable[Reading]:
        if is_broken:
            raise ValueError("not readable")
        return number(BROKER_UP, 1)

    server = MetricsServer(
        "127.0.0.1", 0, service="test", sources=[read], probe=lambda: Health(None, None)
    )
    server.start()
    try:
        with capture_logs() as lines:
            status, content = probe(server.port, "/metrics")
        assert (status, content) == (500, {"error": "the metrics cannot be read: see the log"})
        assert [line["event"] for line in lines] == ["metrics_not_read"]
        is_broken = False
        assert scrape(server.port).value("batchmill_broker_up") == 1
    finally:
        server.close()


def test_no_name_of_the_host_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*name: str) -> str:
        raise AssertionError("DNS was asked")

    monkeypatch.setattr("socket.getfqdn", ask)
    server = MetricsServer(
        "127.0.0.1", 0, service="test", sources=[], probe=lambda: Health(None, None)
    )
    server.close()
