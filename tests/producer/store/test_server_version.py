"""Servers that are refused when a connection is made: too old, or a node of a cluster."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from batchmill.producer import AsyncClient, Client, UnsupportedBroker
from batchmill.producer.store.server_version import UnsupportedServer, check_greeting


class GreetingServer:
    """Replies to HELLO with a greeting, and to everything else with OK."""

    def __init__(self, server: str, version: str, mode: str) -> None:
        pairs = {"server": server, "version": version, "mode": mode}
        texts = [text for pair in pairs.items() for text in pair]
        body = "".join(f"${len(text)}\r\n{text}\r\n" for text in texts)
        self._greeting = f"%4\r\n{body}$5\r\nproto\r\n:3\r\n".encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._reply, args=(connection,), daemon=True).start()

    def _reply(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(self._greeting if b"HELLO" in data else b"+OK\r\n")


@pytest.fixture(params=[("redis", "6.2.14", "standalone"), ("valkey", "8.1.0", "cluster")])
def refused_url(request: pytest.FixtureRequest) -> Iterator[str]:
    server = GreetingServer(*request.param)
    yield server.url
    server.close()


def test_clients_refuse_an_unsupported_server_by_name(refused_url: str) -> None:
    refusal = r"needs Redis 7\.0 or Valkey 7\.2|cluster mode"
    with Client(refused_url) as client:
        for _ in range(2):  # the connection is not used the next time either
            with pytest.raises(UnsupportedBroker, match=refusal):
                client.submit(prompt="x")
        with pytest.raises(UnsupportedBroker, match=refusal):
            client.result("gen_x")  # at once, although it may wait for ever

    async def submit() -> None:
        async with AsyncClient(refused_url) as async_client:
            for _ in range(2):
                with pytest.raises(UnsupportedBroker, match=refusal):
                    await async_client.submit(prompt="x")

    asyncio.run(submit())


@pytest.mark.parametrize(
    ("server", "version", "is_refused"),
    [
        ("redis", "7.0.15", False),
        ("redis", "8.2.3", False),
        ("redis", "10.0.0", False),
        ("redis", "6.2.14", True),
        ("redis", "5.0.14", True),
        ("valkey", "7.2.4", False),
        ("valkey", "9.1.2", False),
        ("dragonfly", "1.30", False),  # not known, so not judged
        ("redis", "unstable", False),
    ],
)
def test_versions(server: str, version: str, is_refused: bool) -> None:
    greeting = {
        b"server": server.encode(),
        b"version": version.encode(),
        b"mode": b"standalone",
        b"proto": 3,
    }
    if is_refused:
        with pytest.raises(UnsupportedServer, match=version):
            check_greeting(greeting)
    else:
        check_greeting(greeting)
    check_greeting([b"server", b"redis", b"version", b"6.2"])  # not a greeting
