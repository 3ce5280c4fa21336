"""Replies of Redis that are lost on their way to a worker."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ..conftest import Mill


class ReplyCutter:
    """An address of a server that loses the first reply with some bytes, and its connection."""

    def __init__(self, server: RedisServer, marker: bytes) -> None:
        self.path = server.folder / "cutter"
        self.url = f"unix://{self.path}"
        self.has_cut = False
        self._target = server.socket
        self._marker = marker
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        Path(self.path).unlink()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        peers = {client: server, server: client}
        with client, server, selectors.DefaultSelector() as selector:
            for end in peers:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = client if key.fileobj is client else server
                    data = source.recv(65536)
                    is_cut = source is server and self._marker in data and not self.has_cut
                    self.has_cut = self.has_cut or is_cut
                    if is_cut or not data:
                        return
                    peers[source].sendall(data)


@pytest.fixture
def claim_cutter(redis_server: RedisServer) -> Iterator[ReplyCutter]:
    cutter = ReplyCutter(redis_server, b"CLAIMED")
    yield cutter
    cutter.close()


def test_a_claim_whose_reply_was_lost_is_found_again_at_once(
    mill: Mill, claim_cutter: ReplyCutter
) -> None:
    # With a lease this long, the sweep would not give the job back within the test.
    worker = mill.start_worker(broker_url=claim_cutter.url, lease_s=60)
    [record] = mill.wait_ended(mill.submit())

    assert claim_cutter.has_cut
    assert "claim_delayed" in worker.log
    assert record.state is JobState.COMPLETED
    assert (record.attempts, record.suspect) == (1, 0)
