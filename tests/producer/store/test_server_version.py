"""Servers that are refused when a connection is made: too old, or a node of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest

from batchmill.producer import AsyncClient, Client, UnsupportedBroker
from batchmill.producer.store.server_version import UnsupportedServer, check_greeting
from batchmill.producer.store.start_check import refuse_unsupported

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


def test_a_program_that_starts_refuses_an_unsupported_server(refused_url: str) -> None:
    with pytest.raises(UnsupportedBroker):
        refuse_unsupported(refused_url)


@pytest.mark.parametrize(
    "reply", ["-DENIED protected mode", "-ERR invalid request", "-LOADING the dataset", "HTTP/1.1"]
)
def test_a_program_starts_if_a_server_does_not_tell_its_version(reply: str) -> None:
    with closing(GreetingServer("redis", "8.2.3", "standalone")) as server:
        refuse_unsupported(server.url)
        server.greeting = f"{reply}\r\n".encode()
        refuse_unsupported(server.url)


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
