"""The sender and receivers that misbehave in every way that a server can."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network

import pytest

from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.webhooks.sender import SendOutcome, WebhookSender

Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"type":"generation.completed"}'


class Receiver:
    """A server on loopback that reads one request and responds with the given bytes."""

    def __init__(self, respond: Respond) -> None:
        self.requests: list[bytes] = []
        self._respond = respond

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head + await reader.readexactly(len(BODY)))
            await self._respond(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def make_sender(*, total_timeout_s: float = 30.0, allow_http: bool = True) -> WebhookSender:
    policy = TargetPolicy(
        allow_http=allow_http, ports=[(1024, 65535)], networks=[ip_network("127.0.0.0/8")]
    )
    return WebhookSender(
        connect_timeout_s=10.0,
        total_timeout_s=total_timeout_s,
        policy=policy,
        user_agent="batchmill/test",
    )


def raw_response(data: bytes) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return respond


def status(line: str, *headers: str) -> Respond:
    lines = [f"HTTP/1.1 {line}", "content-length: 0", "connection: close", *headers, "", ""]
    return raw_response("\r\n".join(lines).encode())


def send(
    respond: Respond, *, times: int = 1, total_timeout_s: float = 30.0, allow_http: bool = True
) -> tuple[SendOutcome, Receiver]:
    async def run() -> tuple[SendOutcome, Receiver]:
        async with Receiver(respond) as receiver:
            sender = make_sender(total_timeout_s=total_timeout_s, allow_http=allow_http)
            for _ in range(times):
                outcome = await sender.send(receiver.url, BODY, {"webhook-id": "evt_1"})
            return outcome, receiver

    return asyncio.run(run())


def test_body_and_headers_arrive_as_they_are() -> None:
    outcome, receiver = send(status("204 No Content"))
    assert outcome.delivered
    head, body = receiver.requests[0].split(b"\r\n\r\n")
    assert body == BODY
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /hook http/1.1"
    assert "webhook-id: evt_1" in lines
    assert "content-type: application/json" in lines
    assert "user-agent: batchmill/test" in lines
    assert "accept-encoding: identity" in lines


@pytest.mark.parametrize("line", ["200 OK", "201 Created", "299 Odd"])
def test_any_2xx_is_a_delivery(line: str) -> None:
    outcome, _ = send(status(line))
    assert outcome.delivered


@pytest.mark.parametrize("line", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_redirect_is_a_failure_and_is_not_followed(line: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(Receiver(status("200 OK")))
            origin = Receiver(status(line, f"location: {target.url}"))
            origin = await stack.enter_async_context(origin)
            outcome = await make_sender().send(origin.url, BODY, {})
        assert not outcome.delivered
        assert not outcome.disables
        assert outcome.reason == f"http_{line.split()[0]}"
        assert len(origin.requests) == 1
        assert target.requests == []

    asyncio.run(run())


def test_gone_disables_and_a_server_error_does_not() -> None:
    assert send(status("410 Gone"))[0].disables
    assert not send(status("500 Oops"))[0].disables


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("7", 7.0),
        ("garbage", None),
        ("-3", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_read_and_invalid_values_are_ignored(
    value: str, expected_s: float | None
) -> None:
    outcome, _ = send(status("429 Too Many Requests", f"retry-after: {value}"))
    assert outcome.retry_after_s == expected_s


def test_receiver_that_never_responds_ends_at_the_total_time_limit() -> None:
    async def hang(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    start = time.monotonic()
    outcome, _ = send(hang, total_timeout_s=0.4)
    assert outcome.reason == "timeout"
    assert time.monotonic() - start < 30


def test_slow_headers_cannot_extend_the_total_time_limit() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nx-endless: " + b"a" * 10_000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    start = time.monotonic()
    outcome, _ = send(drip, total_timeout_s=0.4)
    assert outcome.reason == "timeout"
    assert time.monotonic() - start < 30


def test_endless_body_is_not_read_to_its_end() -> None:
    num_bytes = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal num_bytes
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            num_bytes += 65536

    outcome, _ = send(flood)
    assert outcome.delivered
    assert num_bytes < 20_000_000  # what the socket buffers of both ends may hold


@pytest.mark.parametrize(("num_bytes", "reason"), [(40_000, "http_200"), (70_000, "head_too_long")])
def test_a_long_head_is_read_up_to_its_limit(num_bytes: int, reason: str) -> None:
    lines = b"".join(b"set-cookie: a=%s\r\n" % (b"x" * 990) for _ in range(num_bytes // 1000))
    outcome, _ = send(raw_response(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n" + lines + b"\r\n"))
    assert outcome.reason == reason
    assert not outcome.disables


def test_compressed_response_is_never_decompressed() -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(bomb)}\r\n\r\n"
    outcome, _ = send(raw_response(head.encode() + bomb))
    assert outcome.delivered


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", "protocol"),
        (b"", "no_response"),
        (b"HTTP/1.1 200", "no_response"),
        (b"HTTP/1.1 200 OK\r\nbroken", "no_response"),
    ],
)
def test_response_that_is_not_http_or_not_complete_is_a_failed_attempt(
    data: bytes, reason: str
) -> None:
    outcome, _ = send(raw_response(data))
    assert outcome.status is None
    assert outcome.reason == reason
    assert not outcome.disables


def test_cookies_are_not_kept() -> None:
    _, receiver = send(status("200 OK", "set-cookie: who=you"), times=2)
    assert all(b"cookie" not in request.lower() for request in receiver.requests)


def test_plain_http_is_refused_unless_allowed() -> None:
    outcome, receiver = send(status("200 OK"), allow_http=False)
    assert outcome.reason == "refused_scheme"
    assert outcome.disables
    assert receiver.requests == []


def test_closed_port_is_a_failed_attempt() -> None:
    async def run() -> SendOutcome:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        return await make_sender().send(f"http://127.0.0.1:{port}/", BODY, {})

    assert asyncio.run(run()).reason == "connect"


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a b/", "http://\x00/"])
def test_broken_url_is_a_failed_attempt_not_an_exception(url: str) -> None:
    async def run() -> SendOutcome:
        return await make_sender().send(url, BODY, {})

    assert asyncio.run(run()).reason == "refused_url"


def test_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    outcome, _ = send(status("200 OK"))
    assert outcome.delivered
