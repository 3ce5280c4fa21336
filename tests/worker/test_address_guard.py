"""The sender against URLs and names that lead to this machine: nothing may reach its socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from AntiSSRF import AntiSSRFError, AntiSSRFPolicy, PolicyConfigOptions

from batchmill.producer.webhook_target import TargetPolicy
from batchmill.worker.pinned_connection import LookUp
from batchmill.worker.webhook_sender import SendOutcome, WebhookSender

BODY = b"{}"
ANY_PORT = [(1, 65535)]
NOTATIONS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
    "017700000001", "0", "0.0.0.0", "127.0.0.1.", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fec0::1]", "[fe80::1%25lo]", "localhost",
    "localhost.", "LOCALHOST", "user@127.0.0.1", "example.com@127.0.0.1", "127.0.0.1\\@a.example",
    "%31%32%37.0.0.1", "\u2460\u2461\u2466.0.0.1", "127\u30020.0.1", "127.0.0.1\r\nx: y",
]  # fmt: skip
# The other guard leaves these two to the look-up and the connection, which then fail.
SHARED_NOTATIONS = [x for x in NOTATIONS[:21] if x not in ("[::127.0.0.1]", "127.0.0.1.")]
METADATA = ["169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "100.100.100.200", "192.0.0.192"]


class Listener:
    """A socket at which every connection is noticed, although nobody accepts it."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        dual = host == "::"
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    def num_connections(self) -> int:
        number = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.accept()[0].close()
                number += 1
        return number


@pytest.fixture
def everywhere() -> Iterator[Listener]:
    """Listens at every address of this machine."""
    listener = Listener("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
    with listener.socket:
        yield listener


def send(
    url: str,
    *,
    networks: Sequence[str] = (),
    look_up: LookUp | None = None,
    tls: ssl.SSLContext | None = None,
    total_timeout_s: float = 5.0,
) -> SendOutcome:
    policy = TargetPolicy(
        allow_http=True, ports=ANY_PORT, networks=[ip_network(text) for text in networks]
    )
    sender = WebhookSender(
        connect_timeout_s=1.0,
        total_timeout_s=total_timeout_s,
        policy=policy,
        user_agent="batchmill/test",
        look_up=look_up,
        tls=tls,
    )
    return asyncio.run(sender.send(url, BODY, {"webhook-id": "evt_1"}))


def names(*addresses: str) -> LookUp:
    """A look-up that leads every name to these."""

    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        return [
            entry
            for address in addresses
            for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        ]

    return look_up


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", NOTATIONS)
def test_no_notation_of_this_machine_is_connected_to(
    everywhere: Listener, scheme: str, host: str
) -> None:
    outcome = send(f"{scheme}://{host}:{everywhere.port}/")
    assert outcome.reason in ("refused_address", "refused_url")
    assert outcome.disables
    assert everywhere.num_connections() == 0


def test_listener_would_have_noticed(everywhere: Listener) -> None:
    url = f"http://127.0.0.1:{everywhere.port}/"
    assert send(url, networks=["127.0.0.0/8"], total_timeout_s=0.3).reason == "timeout"
    assert everywhere.num_connections() == 1


@pytest.mark.parametrize("host", METADATA)
def test_metadata_services_are_refused(host: str) -> None:
    assert send(f"http://{host}/latest/meta-data/").reason == "refused_address"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.215.14", "127.0.0.1"],
        ["127.0.0.1", "93.184.215.14"],
        ["93.184.215.14", "::ffff:127.0.0.1"],
        ["2606:4700::1111", "::1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
    ],
)
def test_name_with_one_forbidden_address_is_refused_whole(
    everywhere: Listener, addresses: list[str]
) -> None:
    outcome = send(f"http://two.example:{everywhere.port}/", look_up=names(*addresses))
    assert outcome.reason == "refused_address"
    assert everywhere.num_connections() == 0


def test_rebinding_name_is_looked_up_once_and_reached_at_the_checked_address() -> None:
    """The second answer of the name is another listener: what was checked is what is used."""
    inner = Listener("127.0.0.1")
    with inner.socket, Listener("127.0.0.2", inner.port).socket as checked:
        answers = ["127.0.0.2", "127.0.0.1", "127.0.0.1"]
        asked: list[str] = []

        def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
            asked.append(host)
            return names(answers.pop(0))(host, port)

        outcome = send(
            f"http://rebinding.example:{inner.port}/",
            networks=["127.0.0.2/32"],
            look_up=look_up,
            total_timeout_s=0.5,
        )
        assert outcome.reason == "timeout"  # nobody answers there
        assert asked == ["rebinding.example"]
        checked.accept()[0].close()
        assert inner.num_connections() == 0


def test_name_that_is_public_first_and_inner_next_is_refused_at_the_next_attempt(
    everywhere: Listener,
) -> None:
    url = f"http://rebinding.example:{everywhere.port}/"
    assert send(url, look_up=names("127.0.0.1")).reason == "refused_address"
    assert everywhere.num_connections() == 0


def test_next_address_is_tried_where_the_first_does_not_answer() -> None:
    with Listener("127.0.0.3").socket as listener:
        url = f"http://two.example:{listener.getsockname()[1]}/"
        look_up = names("127.0.0.2", "127.0.0.3")
        outcome = send(url, networks=["127.0.0.0/8"], look_up=look_up, total_timeout_s=0.5)
        assert outcome.reason == "timeout"
        listener.accept()[0].close()


def test_look_up_that_hangs_ends_at_the_total_time_limit() -> None:
    released = threading.Event()

    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        released.wait(30)
        return []

    start = time.monotonic()
    assert send("http://slow.example/", look_up=look_up, total_timeout_s=0.3).reason == "timeout"
    released.set()
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize("found", [[], OSError("no such name"), UnicodeError("label too long")])
def test_name_that_leads_nowhere_is_a_failed_attempt(found: Any) -> None:
    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        if isinstance(found, Exception):
            raise found
        return list(found)

    outcome = send("https://gone.example/", look_up=look_up)
    assert outcome.reason == "look_up"
    assert not outcome.disables


# The same table for an implementation that is not ours: what it blocks, we block.
@pytest.mark.parametrize("host", [*SHARED_NOTATIONS, *METADATA])
def test_microsoft_s_guard_agrees(everywhere: Listener, host: str) -> None:
    policy = AntiSSRFPolicy(PolicyConfigOptions.EXTERNAL_ONLY_V1)
    policy.allow_plain_text_http = True
    session = policy.get_antissrf_session()
    with session, pytest.raises(AntiSSRFError):
        session.post(f"http://{host}:{everywhere.port}/", data=BODY, timeout=0.2)
    assert everywhere.num_connections() == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of `receiver.example`, which signs itself."""
    path = tmp_path_factory.mktemp("tls") / "receiver.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=receiver.example"]
    command += ["-addext", "subjectAltName=DNS:receiver.example"]
    command += ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def post_over_tls(certificate: Path, host: str, *, trusted: bool = True) -> tuple[SendOutcome, Any]:
    """Post to a TLS receiver on loopback under a name; the outcome, and what the receiver saw."""
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
