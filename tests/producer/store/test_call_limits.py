"""How long a call to a broker takes that accepts connections and does not reply, or is away."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer import AsyncClient, BrokerUnavailable, Client
from batchmill.producer.broker_url import find_timeout_s

from ...conftest import RedisServer
from ..blocking_client import Blocking, LoopThread

_TIMEOUT_S = 0.4
#: Far above the limit, far below the minutes of schedules that multiply.
_PATIENCE_S = 30.0
_CALLS: dict[str, Callable[[Any], object]] = {
    "submit": lambda client: client.submit(prompt="x"),
    "submit_many": lambda client: client.submit_many(["x"] * 3),
    "status": lambda client: client.status("gen_x"),
    "cancel": lambda client: client.cancel("gen_x"),
    "result without a wait": lambda client: client.result("gen_x", 0),
    "result": lambda client: client.result("gen_x", 0.2),
    "as_completed": lambda client: list(client.as_completed(["gen_x"], timeout_s=0.2)),
    "stream": lambda client: list(client.stream("gen_x", timeout_s=0.2)),
    "batch_results": lambda client: list(client.batch_results("batch_x", timeout_s=0.2)),
}


class SilentServer:
    """Accepts connections and never sends a byte, as a half-open network path does."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._listener.accept()[0])
            except OSError:
                return


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    yield server
    server.close()


@pytest.fixture(params=["Client", "AsyncClient"])
def new_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make a client of either kind behind one interface."""
    with contextlib.ExitStack() as stack:
        if request.param == "Client":
            yield lambda url, timeout_s=_TIMEOUT_S: stack.enter_context(
                Client(url, timeout_s=timeout_s)
            )
            return
        loop = LoopThread()
        stack.callback(loop.close)

        def make(url: str, timeout_s: float = _TIMEOUT_S) -> Blocking:
            client = AsyncClient(url, timeout_s=timeout_s)
            stack.callback(lambda: loop.run(client.close()))
            return Blocking(client, loop)

        yield make


@pytest.mark.parametrize("call", _CALLS)
def test_a_call_to_a_silent_broker_ends_within_its_limit(
    silent: SilentServer, new_client: Callable[..., Any], call: str
) -> None:
    begin = time.monotonic()

    with pytest.raises(BrokerUnavailable, match="BATCHMILL_BROKER_TIMEOUT_S"):
        _CALLS[call](new_client(silent.url))

    assert time.monotonic() - begin < _PATIENCE_S
    assert len(silent.connections) <= 4  # a second attempt, and a wait that connects again


def test_a_wait_for_a_broker_that_is_away_says_so(new_client: Callable[..., Any]) -> None:
    with pytest.raises(BrokerUnavailable, match=r"Connection refused|Connect call failed"):
        new_client("redis://127.0.0.1:1/0").result("gen_x", 0.2)


def test_a_client_of_a_frozen_broker_gives_up_and_serves_again_when_it_thaws(
    private_redis_server: RedisServer, new_client: Callable[..., Any]
) -> None:
    client = new_client(private_redis_server.url, 3.0)  # the calls before and after may take some
    job_id = client.submit(prompt="x").id
    server = private_redis_server.process
    assert server is not None
    begin = time.monotonic()

    server.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable):
            client.status(job_id)
    finally:
        server.send_signal(signal.SIGCONT)

    assert time.monotonic() - begin < _PATIENCE_S
    assert client.status(job_id).id == job_id


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_a_positive_number(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Client("redis://127.0.0.1:1/0", timeout_s=timeout_s)


def test_the_environment_sets_the_limit() -> None:
    assert find_timeout_s({"BATCHMILL_BROKER_TIMEOUT_S": "2.5"}) == 2.5
    with pytest.raises(ValueError, match="BATCHMILL_BROKER_TIMEOUT_S is 'soon'"):
        find_timeout_s({"BATCHMILL_BROKER_TIMEOUT_S": "soon"})
