"""Clients find the primary through real Sentinels, and follow it over a failover."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from batchmill.producer import AsyncClient, BrokerUnavailable, Client
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.failover.watched import WatchedService

from ...conftest import SERVER_PROGRAM
from ...support.processes import free_port, wait_until


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedService]:
    folder = tmp_path_factory.mktemp("watched")
    watched = WatchedService(folder, password="secret", program=SERVER_PROGRAM)
    yield watched
    watched.close()


def test_clients_follow_the_primary(watched: WatchedService) -> None:
    async def submit_and_read(job_id: str) -> JobState:
        async with AsyncClient(watched.url) as client:
            return (await client.job(job_id).status()).state

    with Client(watched.url, timeout_s=60) as client:
        before = client.submit("before")
        watched.wait_in_step()
        old = watched.primary_port()
        watched.kill_primary()
        after = client.submit("after")
        assert watched.primary_port() != old
        assert before.status().state is JobState.QUEUED
        assert asyncio.run(submit_and_read(after.id)) is JobState.QUEUED


def test_one_dead_sentinel_hides_nothing(watched: WatchedService) -> None:
    watched.kill_sentinel()
    with Client(watched.url) as client:

        def is_served() -> bool:
            try:
                return client.submit("hi").status().state is JobState.QUEUED
            except BrokerUnavailable:  # the other Sentinels may still name the old primary
                return False

        wait_until(is_served, "a primary by the other Sentinels")


def test_an_unknown_service_is_named(watched: WatchedService) -> None:
    url = watched.url.replace("/mill/", "/other/")
    with (
        Client(url, timeout_s=2) as client,
        pytest.raises(BrokerUnavailable, match=r"no Sentinel names a primary of 'other'.*no such"),
    ):
        client.submit("hi")


def test_sentinels_that_do_not_reply_are_named() -> None:
    port = free_port()
    with (
        Client(f"sentinel://127.0.0.1:{port}/mill", timeout_s=2) as client,
        pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"),
    ):
        client.submit("hi")
