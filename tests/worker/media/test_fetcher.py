"""Fetching media: the table of attacks on addresses, the server's responses, and the limits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from batchmill.producer import JobRejected, ProducerSettings
from batchmill.producer.job.validation import parse_job
from batchmill.producer.store.submission import prepare
from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.media.errors import REFUSED, TOO_LARGE, UNREACHABLE, MediaError
from batchmill.worker.media.fetcher import MediaFetcher

from ..webhooks.address_attacks import ANY_PORT, Attack, Listener, attacks, names

OWN_NETWORK = TargetPolicy(
    allow_http=True,
    ports=ANY_PORT,
    networks=[ip_network("127.0.0.0/8")],
    settings="BATCHMILL_MEDIA",
)
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def everywhere() -> Iterator[Listener]:
    """A listener on every address of this machine."""
    listener = Listener.everywhere()
    with listener.socket:
        yield listener


@pytest.mark.parametrize("attack", attacks(), ids=str)
def test_no_attack_is_connected_to(everywhere: Listener, attack: Attack) -> None:
    policy = TargetPolicy(allow_http=True, ports=ANY_PORT, settings="BATCHMILL_MEDIA")
    fetcher = MediaFetcher(
        TargetPolicy() if attack.by_default_rules else policy,
        timeout_s=5,
        max_bytes=100,
        look_up=names(*attack.addresses) if attack.addresses else None,
    )
    with pytest.raises(MediaError) as refusal:
        fetcher.fetch(attack.url.format(port=everywhere.port))
    assert refusal.value.code == REFUSED
    assert everywhere.num_connections() == 0


def test_a_refusal_does_not_tell_what_a_name_means_inside_the_network() -> None:
    fetcher = MediaFetcher(TargetPolicy(), timeout_s=5, max_bytes=100, look_up=names("10.1.2.3"))
    with pytest.raises(MediaError, match="not public") as refusal:
        fetcher.fetch("https://inside.example/a.png")
    assert "10.1.2.3" not in str(refusal.value)


def test_networks_of_webhooks_are_not_read_from() -> None:
    settings = ProducerSettings(
        webhook_allow_http=True,
        webhook_allow_networks=("10.0.0.0/8",),
        webhook_allow_ports=("1-9",),
    )
    part = {"type": "image", "url": "https://10.0.0.1/a.png"}
    job = parse_job({"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(JobRejected, match="BATCHMILL_MEDIA_ALLOW_NETWORKS"):
        prepare(job, settings)
    assert prepare(job, ProducerSettings(media_allow_networks=("10.0.0.0/8",))).media == (None,)


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """A function that serves a response once, and returns its URL."""
    servers: list[socket.socket] = []

    def start(response: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(response)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/a.png?signature=secret"

    yield start
    for server in servers:
        server.close()


def fetch(url: str, *, max_bytes: int = 100, timeout_s: float = 20.0) -> bytes:
    return MediaFetcher(OWN_NETWORK, timeout_s=timeout_s, max_bytes=max_bytes).fetch(url)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(OK + b"Content-Length: 3\r\n\r\nabc", id="length"),
        pytest.param(OK + b"\r\nabc", id="until-closed"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", id="chunked"),
    ],
)
def test_the_body_of_a_response_is_returned(serve: Callable[[bytes], str], response: bytes) -> None:
    assert fetch(serve(response)) == b"abc"


@pytest.mark.parametrize(
    ("response", "code"),
    [
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n", REFUSED, id="302"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\n\r\n", REFUSED, id="404"),
        pytest.param(b"HTTP/1.1 403 Forbidden\r\n\r\n", REFUSED, id="403"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", REFUSED, id="204"),
        pytest.param(b"HTTP/1.1 408 Timeout\r\n\r\n", UNREACHABLE, id="408"),
        pytest.param(b"HTTP/1.1 429 Too Many\r\n\r\n", UNREACHABLE, id="429"),
        pytest.param(b"HTTP/1.1 503 Unavailable\r\n\r\n", UNREACHABLE, id="503"),
        pytest.param(OK + b"Content-Encoding: gzip\r\n\r\nabc", REFUSED, id="gzip"),
        pytest.param(OK + b"Content-Length: 101\r\n\r\n", TOO_LARGE, id="declared-too-long"),
        pytest.param(OK + b"\r\n" + b"x" * 101, TOO_LARGE, id="too-long"),
        pytest.param(OK + b"Content-Length: 9\r\n\r\nabc", UNREACHABLE, id="cut"),
        pytest.param(b"220 smtp ready\r\n", UNREACHABLE, id="not-http"),
        pytest.param(b"", UNREACHABLE, id="nothing"),
    ],
)
def test_other_responses_say_whether_another_attempt_may_help(
    serve: Callable[[bytes], str], response: bytes, code: str
) -> None:
    with pytest.raises(MediaError) as refusal:
        fetch(serve(response))
    assert refusal.value.code == code
    assert "secret" not in str(refusal.value)


def test_a_server_that_is_silent_or_away_is_unreachable() -> None:
    with Listener("127.0.0.1").socket as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(MediaError, match=r"took more than 0.2 s") as refusal:
            fetch(url, timeout_s=0.2)
        assert refusal.value.code == UNREACHABLE
    with pytest.raises(MediaError, match="does not accept") as refusal:
        fetch(url)
    assert refusal.value.code == UNREACHABLE
