"""A server that refuses calls for a while: clients say which refusal, and serve again after it."""

from __future__ import annotations

import asyncio

import pytest

from batchmill.producer import AsyncClient, BrokerUnavailable, Client

from ...conftest import RedisServer
from ...support.server_refusals import REFUSALS, refused

#: What the message says; redis-py removes the word from some of them.
_SAID = {
    "READONLY": "read only replica",
    "MASTERDOWN": "MASTERDOWN|Link with MASTER is down|Link with PRIMARY is down",
    "NOAUTH": "needs a password",
    # A server that loads looks at its connections only now and then.
    "LOADING": "loading the dataset|does not reply",
}


#: Those that refuse reads too.
_NO_READS = ("MASTERDOWN", "BUSY", "NOAUTH", "LOADING")


@pytest.mark.parametrize("word", _NO_READS)
def test_a_read_that_is_refused_is_an_error_of_ours(
    private_redis_server: RedisServer, word: str
) -> None:
    url = private_redis_server.url

    async def read(client: AsyncClient, job_id: str) -> None:
        await client.job(job_id).status()

    with Client(url, timeout_s=0.8) as client, asyncio.Runner() as runner:
        async_client = AsyncClient(url, timeout_s=0.8)
        job = client.submit(prompt="x")
        runner.run(read(async_client, job.id))
        with refused(word, private_redis_server):
            with pytest.raises(BrokerUnavailable):
                job.status()
            with pytest.raises(BrokerUnavailable):
                runner.run(read(async_client, job.id))
        runner.run(async_client.close())


@pytest.mark.parametrize("word", REFUSALS)
def test_a_client_says_which_refusal_and_serves_when_it_is_over(
    private_redis_server: RedisServer, word: str
) -> None:
    url = private_redis_server.url

    async def submit(client: AsyncClient) -> None:
        await client.submit(prompt="x")

    with Client(url, timeout_s=0.8) as client, asyncio.Runner() as runner:
        async_client = AsyncClient(url, timeout_s=0.8)
        job = client.submit(prompt="x")
        runner.run(submit(async_client))
        with refused(word, private_redis_server):
            with pytest.raises(BrokerUnavailable, match=_SAID.get(word, word)):
                client.submit(prompt="x")
            with pytest.raises(BrokerUnavailable, match=_SAID.get(word, word)):
                runner.run(submit(async_client))
        assert client.submit(prompt="x").id != job.id
        runner.run(submit(async_client))
        runner.run(async_client.close())
