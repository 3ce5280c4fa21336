"""Replies of Redis that are lost on their way to a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ...support.address import Address
from ..conftest import Mill


class ReplyCutter(Address):
    """An address of a server that loses the first reply with some bytes, and its connection."""

    def __init__(self, server: RedisServer, marker: bytes) -> None:
        self.has_cut = False
        self._marker = marker
        super().__init__(server.folder, server.socket)

    def close(self) -> None:
        super().close()
        self.path.unlink()

    def loses(self, reply: bytes) -> bool:
        is_cut = self._marker in reply and not self.has_cut
        self.has_cut = self.has_cut or is_cut
        return is_cut


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
