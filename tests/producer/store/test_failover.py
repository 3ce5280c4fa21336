"""A failover behind one address: clients leave the old primary, which is a replica now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from batchmill.producer import AsyncClient, Client
from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ...support.address import Address


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
        admin._shards.first.client.execute_command("REPLICAOF", "127.0.0.1", "1")
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
        jobs = client.submit_many(["more"] * 3)

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
