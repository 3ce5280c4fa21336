"""Clients where servers fork, and where several event loops run."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from batchmill.producer import AsyncClient, WrongEventLoop
from batchmill.producer.store.job_store import JobStore

#: Uses a client, forks, and uses it on both sides at once: each checks that answers are its own.
_FORKS = """
import os, sys
from batchmill.producer import Client
client = Client(sys.argv[1])
client.submit(prompt="before the fork", idempotency_key="before")
child = os.fork()
name = "parent" if child else "child"
for number in range(60):
    job = client.submit(prompt="x", idempotency_key=f"{name}-{number}")
    assert client.status(job.id).id == job.id
    assert client.submit(prompt="x", idempotency_key=f"{name}-{number}").id == job.id
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_client_made_before_a_fork_serves_both_processes(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, redis_url], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    store = JobStore.from_url(redis_url)
    assert store.counts().queued == 121
    store.close()


def test_an_asyncio_client_in_another_loop_is_refused_before_anything_is_sent(
    redis_url: str,
) -> None:
    client = AsyncClient(redis_url)

    async def submit() -> str:
        return (await client.submit(prompt="x")).id

    async def close() -> None:
        await client.close()

    with asyncio.Runner() as first:
        first.run(submit())
        with asyncio.Runner() as second, pytest.raises(WrongEventLoop, match="one client per loop"):
            second.run(submit())
        first.run(submit())
        first.run(close())
    store = JobStore.from_url(redis_url)
    assert store.counts().queued == 2
    store.close()
