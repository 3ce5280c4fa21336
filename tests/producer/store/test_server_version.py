"""Servers that are refused when a connection is made: too old, or a node of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from batchmill.producer import AsyncClient, Client, UnsupportedBroker
from batchmill.producer.store.server_version import UnsupportedServer, check_greeting

from ...support.greeting_server import GreetingServer


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
