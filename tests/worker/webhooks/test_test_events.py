"""`batchmill webhooks test`: one signed event, and the outcome in words."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchmill.producer.webhook.needed_settings import needed_settings
from batchmill.worker.webhooks.local_receiver import LOOPBACK, WebhookReceiver
from batchmill.worker.webhooks.reasons import explain

from ..command_line import CommandResult, call, error_of
from ..webhook_deliverers import SECRET, respond_with, verify

_ALLOWED = {
    "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
    "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
    "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
}


def send_test(url: str, **settings: str) -> CommandResult:
    return call(
        "webhooks", "test", url, **{"BATCHMILL_WEBHOOK_SECRET": SECRET, **_ALLOWED, **settings}
    )


@contextmanager
def receiver_that_crashes() -> Iterator[str]:
    """Listen, read each request and close the connection, as a handler that raises does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"
        thread.join(10)


def test_the_event_is_signed_and_has_an_id_like_every_event() -> None:
    with WebhookReceiver(respond_with(200)) as receiver:
        shown = send_test(receiver.url)
    assert shown.returncode == 0
    assert "delivered after" in shown.stdout
    assert "the receiver responded with 200 OK" in shown.stdout
    [request] = receiver.requests
    verify(request)
    event = json.loads(request.body)
    assert event["type"] == "webhook.test"
    assert event["data"]["id"] == request.headers["webhook-id"]


def test_a_receiver_that_closes_without_a_response_is_told_in_words() -> None:
    with receiver_that_crashes() as url:
        shown = send_test(url)
    assert shown.returncode == 1
    assert "not delivered after" in shown.stdout
    assert "the receiver closed the connection without a response" in shown.stdout


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "its log says why"), (302, "redirect"), (401, "secret"), (404, "check the path")],
)
def test_a_status_is_told_with_a_remedy(status: int, words: str) -> None:
    with WebhookReceiver(respond_with(status)) as receiver:
        shown = send_test(receiver.url)
    assert shown.returncode == 1
    assert f"the receiver responded with {status}" in shown.stdout
    assert words in shown.stdout


def test_a_refusal_names_every_setting_that_the_url_needs() -> None:
    shown = call(
        "webhooks", "test", "http://127.0.0.1:8000/", "--json", BATCHMILL_WEBHOOK_SECRET=SECRET
    )
    found = json.loads(shown.stdout)
    assert found["reason"] == "refused_scheme"
    assert found["explanation"].endswith(
        "set BATCHMILL_WEBHOOK_ALLOW_HTTP=true BATCHMILL_WEBHOOK_ALLOW_PORTS=8000 "
        "BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8"
    )


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("https://example.com/hook", []),
        ("https://example.com:8443/", ["BATCHMILL_WEBHOOK_ALLOW_PORTS=8443"]),
        ("https://10.1.2.3/", ["BATCHMILL_WEBHOOK_ALLOW_NETWORKS=10.1.2.3/32"]),
        ("https://[fd00::1]/", ["BATCHMILL_WEBHOOK_ALLOW_NETWORKS=fd00::1/128"]),
        ("https://localhost/", ["BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8,::1/128"]),
        ("https://0x7f000001/", ["BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8"]),
        ("http://example.com:80/", ["BATCHMILL_WEBHOOK_ALLOW_HTTP=true"]),
        ("ftp://example.com/", []),
        ("https://[::1", []),
        ("https://1.2.3.4.5/", []),
    ],
)
def test_the_settings_that_a_url_needs(url: str, settings: list[str]) -> None:
    assert needed_settings(url) == settings


def test_an_unknown_reason_is_shown_as_it_is() -> None:
    assert explain("of_a_later_version") == "of_a_later_version"
    assert "responded with 599" in explain("http_599")


def test_the_secret_of_batchmill_up_is_used_if_none_is_given(tmp_path: Path) -> None:
    with WebhookReceiver() as receiver:
        missing = call(
            *("webhooks", "test", receiver.url, "--json"),
            **_ALLOWED,
            BATCHMILL_STATE_DIR=str(tmp_path),
        )
        assert error_of(missing)["code"] == "no_webhook_secret"
        (tmp_path / "webhook_secret").write_text(SECRET + "\n")
        found = call(
            "webhooks", "test", receiver.url, **_ALLOWED, BATCHMILL_STATE_DIR=str(tmp_path)
        )
        assert found.returncode == 0
    verify(receiver.requests[-1])
