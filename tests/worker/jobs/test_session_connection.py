"""The connection that shows that a worker lives is made at every kind of address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.store.connection import connect
from batchmill.worker.jobs.session_connection import SessionConnection

from ...conftest import RedisServer
from ...support.processes import free_port, wait_until

SESSION = "w1.0123456789abcdef"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The TCP port of a server."""
    number = free_port()
    server = RedisServer("--port", str(number), "--bind", "127.0.0.1")
    server.start()
    yield number
    server.close()


def check_is_counted(url: str) -> None:
    """Check that Redis counts the connection while it is open, and no longer."""
    connection = SessionConnection(url, SESSION)
    client = connect(url)
    channel = keys.session_channel(SESSION)

    def count() -> int:
        return int(client.pubsub_numsub(channel)[0][1])

    connection.start()
    try:
        wait_until(lambda: count() == 1, "the connection")
        wait_until(lambda: connection.connected_s > 0, "the confirmation")
    finally:
        connection.close(5.0)
    wait_until(lambda: count() == 0, "the end of the connection")
    client.close()


@pytest.mark.parametrize("options", ["", "?protocol=3", "?protocol=2", "?max_connections=2"])
def test_redis_counts_the_connection_over_tcp(port: int, options: str) -> None:
    check_is_counted(f"redis://127.0.0.1:{port}/0{options}")


def test_redis_counts_the_connection_over_a_unix_socket(redis_url: str) -> None:
    check_is_counted(redis_url)


def test_a_server_that_is_away_at_first_is_connected_later() -> None:
    number = free_port()
    server = RedisServer("--port", str(number), "--bind", "127.0.0.1")
    connection = SessionConnection(f"redis://127.0.0.1:{number}/0", SESSION)
    connection.start()
    try:
        server.start()
        wait_until(lambda: connection.connected_s > 0, "the connection")
    finally:
        connection.close(5.0)
        server.close()
