"""Which refusals are the server's own, which URLs are refused, and what is not a Redis server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ResponseError

from batchmill.producer import BrokerUnavailable, Client
from batchmill.producer.store.connection import async_connect, connect, is_server_fault


@pytest.mark.parametrize(
    ("answer", "is_state"),
    [
        ("NOSCRIPT No matching script.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("READONLY You can't write against a read only replica.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("NOPERM this user has no permissions", True),
        ("BUSY Redis is busy running a script.", True),
        ("MISCONF Redis is configured to save RDB snapshots", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR value is not an integer or out of range", False),
    ],
)
def test_errors_of_the_server_are_no_fault_of_the_data(answer: str, is_state: bool) -> None:
    error = BaseParser.parse_error(answer)
    assert isinstance(error, ResponseError)
    assert is_server_fault(error) == is_state


@pytest.mark.parametrize("open_client", [connect, async_connect])
def test_an_unknown_option_of_the_url_is_refused_before_any_call(
    open_client: Callable[[str], object],
) -> None:
    with pytest.raises(ValueError, match="has the option 'foo', which redis-py does not know"):
        open_client("redis://127.0.0.1:6379/0?foo=bar")


def test_the_options_of_tls_are_taken(tmp_path: Path) -> None:
    connect(f"rediss://127.0.0.1:6379/0?ssl_ca_certs={tmp_path}/ca.pem&socket_timeout=3")


class MailServer(StreamRequestHandler):
    """Greets as a mail server does, and reads what comes."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")
        while self.rfile.readline():
            pass


def test_another_service_behind_the_port_is_named() -> None:
    with ThreadingTCPServer(("127.0.0.1", 0), MailServer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"redis://127.0.0.1:{server.server_address[1]}/0"
        with (
            Client(url, timeout_s=5) as client,
            pytest.raises(BrokerUnavailable, match="does not reply as Redis does"),
        ):
            client.submit("hello")
        server.shutdown()
        thread.join()
