"""A Redis that refuses calls for a while: 503, and then the gateway serves again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from ...conftest import RedisServer
from ...support.server_refusals import REFUSALS_IN_TURN, refused
from .conftest import DEADLINE_S, Gateway

JOB = {"model": "demo", "input": "hello", "background": True}
#: Refusals of writes alone: reads are served meanwhile.
_READS_GO_ON = {"READONLY", "NOREPLICAS"}
_WRITES = {"submit", "cancel"}


class Site:
    """A server that outlives a restart, one gateway without keys, and a job that waits."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer("--appendonly", "yes")
        self.server.start()
        self.gateway = Gateway(
            *(self.server.url, folder / "gateway.log"),
            broker_timeout_s=2,
            gateway_files_url=folder / "files",
        )
        self.http = httpx2.Client(base_url=self.gateway.url, timeout=DEADLINE_S)
        self.stored = self.http.post("responses", json=JOB).json()["id"]

    def close(self) -> None:
        self.http.close()
        self.gateway.close()
        self.server.close()

    def requests(self) -> dict[str, Callable[[], httpx2.Response]]:
        """One request of each kind: whether it reads or writes, one job or lists."""
        http, path = self.http, f"responses/{self.stored}"
        return {
            "read": lambda: http.get(path),
            "list": lambda: http.get("batches"),
            "models": lambda: http.get("models"),
            "submit": lambda: http.post("responses", json=JOB),
            "cancel": lambda: http.post(f"{path}/cancel"),
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("refusing"))
    yield site
    site.close()


@pytest.mark.parametrize("word", REFUSALS_IN_TURN)
def test_what_redis_refuses_is_a_503_that_may_be_repeated(site: Site, word: str) -> None:
    requests = site.requests()
    with refused(word, site.server), ThreadPoolExecutor(len(requests)) as pool:
        sent = {name: pool.submit(send) for name, send in requests.items()}
        replies = {name: each.result() for name, each in sent.items()}
    refusals = {name: each for name, each in replies.items() if each.status_code != 200}
    if word != "LOADING":  # which ends by itself, and a busy machine may send some of them later
        assert refusals.keys() == (_WRITES if word in _READS_GO_ON else replies.keys())
    assert refusals
    for name, reply in refusals.items():
        assert reply.status_code == 503, (name, reply.text)
        assert int(reply.headers["retry-after"]) > 0
        assert reply.json()["error"]["code"] == "broker_unavailable"
    deadline = time.monotonic() + DEADLINE_S
    while (served := requests["submit"]()).status_code != 200:
        assert time.monotonic() < deadline, served.text
    assert site.http.get(f"responses/{site.stored}").json()["id"] == site.stored
