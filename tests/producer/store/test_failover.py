"""A failover behind one address: clients leave the old primary, which is a replica now."""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import AsyncClient, Client
from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer


class Address:
    """One address that leads to a server, as a service name in a cloud does.

    Connections that exist when it is moved stay open, to the server that they were made to.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.path = folder / "address"
        self.url = f"unix://{self.path}"
        self.target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self.target))
            threading.Thread(target=forward, args=(client, server), daemon=True).start()


def forward(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until an end closes."""
    peers = {one: other, other: one}
    with one, other, selectors.DefaultSelector() as selector:
        for end in peers:
            selector.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                source = one if key.fileobj is one else other
                data = source.recv(65536)
                if not data:
                    return
                peers[source].sendall(data)


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer]]:
    """An old and a new primary."""
    old, new = RedisServer(), RedisServer()
    old.start()
    new.start()
    yield old, new
    old.close()
    new.close()


def fail_over(address: Address, old: RedisServer, new: RedisServer) -> None:
    """Make the old primary a replica and move the address, as a planned failover does."""
    with Client(old.url) as admin:
        admin._store.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    address.target = new.socket


def test_a_client_follows_a_failover(
    servers: tuple[RedisServer, RedisServer], tmp_path_factory: pytest.TempPathFactory
) -> None:
    old, new = servers
    address = Address(old.folder, old.socket)
    with Client(address.url) as client:
        client.submit(prompt="before")
        fail_over(address, old, new)

        job = client.submit(prompt="after")
        jobs = list(client.submit_many([{"prompt": "more"}] * 3))

        assert job.status().state is JobState.QUEUED
        assert [each.status().state for each in jobs] == [JobState.QUEUED] * 3
    address.close()


def test_an_asyncio_client_follows_a_failover(servers: tuple[RedisServer, RedisServer]) -> None:
    old, new = servers
    address = Address(old.folder, old.socket)

    async def submit_around_a_failover() -> JobState:
        async with AsyncClient(address.url) as client:
            await client.submit(prompt="before")
            fail_over(address, old, new)
            job = await client.submit(prompt="after")
            return (await job.status()).state

    assert asyncio.run(submit_around_a_failover()) is JobState.QUEUED
    address.close()
