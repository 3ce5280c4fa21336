"""The sender and URLs or names that lead to this machine: nothing may reach its socket."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from AntiSSRF import AntiSSRFError, AntiSSRFPolicy, PolicyConfigOptions

from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.webhooks.sender import SendOutcome, WebhookSender

from .address_attacks import (
    ANY_PORT,
    BODY,
    METADATA,
    NOTATIONS,
    Attack,
    Listener,
    attacks,
    carry_out,
    names,
    send,
)

# The other guard refuses two of them only at the look-up and the connection.
SHARED_NOTATIONS = [x for x in NOTATIONS[:21] if x not in ("[::127.0.0.1]", "127.0.0.1.")]


@pytest.fixture
def everywhere() -> Iterator[Listener]:
    """A listener on every address of this machine."""
    listener = Listener.everywhere()
    with listener.socket:
        yield listener


@pytest.mark.parametrize("attack", attacks(), ids=str)
def test_no_attack_is_connected_to(everywhere: Listener, attack: Attack) -> None:
    outcome = carry_out(attack, everywhere.port)
    assert outcome.reason in attack.reasons
    assert outcome.disables
    assert everywhere.num_connections() == 0


def test_listener_notices_an_allowed_connection(everywhere: Listener) -> None:
    url = f"http://127.0.0.1:{everywhere.port}/"
    assert send(url, networks=["127.0.0.0/8"], total_timeout_s=0.3).reason == "timeout"
    assert everywhere.num_connections() == 1


def test_rebinding_name_is_looked_up_once_and_reached_at_the_checked_address() -> None:
    """The name resolves to another listener the second time; the checked address is used."""
    inner = Listener("127.0.0.1")
    with inner.socket, Listener("127.0.0.2", inner.port).socket as checked:
        addresses = ["127.0.0.2", "127.0.0.1", "127.0.0.1"]
        asked: list[str] = []

        def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
            asked.append(host)
            return names(addresses.pop(0))(host, port)

        outcome = send(
            f"http://rebinding.example:{inner.port}/",
            networks=["127.0.0.2/32"],
            look_up=look_up,
            total_timeout_s=0.5,
        )
        assert outcome.reason == "timeout"  # nothing responds there
        assert asked == ["rebinding.example"]
        checked.accept()[0].close()
        assert inner.num_connections() == 0


def test_name_that_is_public_first_and_inner_next_is_refused_at_the_next_attempt(
    everywhere: Listener,
) -> None:
    url = f"http://rebinding.example:{everywhere.port}/"
    assert send(url, look_up=names("127.0.0.1")).reason == "refused_address"
    assert everywhere.num_connections() == 0


def test_next_address_is_tried_if_the_first_refuses() -> None:
    with Listener("127.0.0.3").socket as listener:
        url = f"http://two.example:{listener.getsockname()[1]}/"
        look_up = names("127.0.0.2", "127.0.0.3")
        outcome = send(url, networks=["127.0.0.0/8"], look_up=look_up, total_timeout_s=0.5)
        assert outcome.reason == "timeout"
        listener.accept()[0].close()


def test_look_up_that_hangs_ends_at_the_total_time_limit() -> None:
    released = threading.Event()

    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        released.wait(60)
        return []

    start = time.monotonic()
    assert send("http://slow.example/", look_up=look_up, total_timeout_s=0.3).reason == "timeout"
    released.set()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("found", [[], OSError("no such name"), UnicodeError("label too long")])
def test_name_without_an_address_is_a_failed_attempt(found: Any) -> None:
    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        if isinstance(found, Exception):
            raise found
        return list(found)

    outcome = send("https://gone.example/", look_up=look_up)
    assert outcome.reason == "look_up"
    assert not outcome.disables


# The same table with an independent implementation: we block everything that it blocks.
@pytest.mark.parametrize("host", [*SHARED_NOTATIONS, *METADATA])
def test_microsoft_antissrf_agrees(everywhere: Listener, host: str) -> None:
    policy = AntiSSRFPolicy(PolicyConfigOptions.EXTERNAL_ONLY_V1)
    policy.allow_plain_text_http = True
    session = policy.get_antissrf_session()
    with session, pytest.raises(AntiSSRFError):
        session.post(f"http://{host}:{everywhere.port}/", data=BODY, timeout=0.2)
    assert everywhere.num_connections() == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of `receiver.example`."""
    path = tmp_path_factory.mktemp("tls") / "receiver.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=receiver.example"]
    command += ["-addext", "subjectAltName=DNS:receiver.example"]
    command += ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def post_over_tls(certificate: Path, host: str, *, trusted: bool = True) -> tuple[SendOutcome, Any]:
    """Post to a TLS receiver on loopback; return the outcome and what the receiver saw."""
    seen: dict[str, Any] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen["head"] = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    def remember_name(connection: ssl.SSLSocket, name: str, context: ssl.SSLContext) -> None:
        seen["name"] = name

    async def run() -> SendOutcome:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        context.sni_callback = remember_name  # type: ignore[assignment]
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        sender = WebhookSender(
            connect_timeout_s=5.0,
            total_timeout_s=10.0,
            policy=TargetPolicy(ports=ANY_PORT, networks=[ip_network("127.0.0.0/8")]),
            user_agent="batchmill/test",
            look_up=names("127.0.0.1"),
            tls=ssl.create_default_context(cafile=certificate.with_suffix(".crt"))
            if trusted
            else None,
        )
        async with server:
            outcome = await sender.send(f"https://{host}:{port}/hook", BODY, {})
        seen["port"] = port
        return outcome

    return asyncio.run(run()), seen


def test_tls_names_and_verifies_the_host_not_the_address(certificate: Path) -> None:
    outcome, seen = post_over_tls(certificate, "receiver.example")
    assert outcome.delivered
    assert seen["name"] == "receiver.example"
    assert f"host: receiver.example:{seen['port']}" in seen["head"].lower()


@pytest.mark.parametrize(
    ("host", "trusted"), [("other.example", True), ("receiver.example", False)]
)
def test_certificate_of_another_host_or_signer_is_a_failed_attempt(
    certificate: Path, host: str, trusted: bool
) -> None:
    outcome, seen = post_over_tls(certificate, host, trusted=trusted)
    assert outcome.reason == "tls"
    assert not outcome.disables
    assert "head" not in seen
