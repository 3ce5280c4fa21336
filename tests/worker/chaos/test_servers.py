"""The servers of a run are killed only when nothing can be lost that they have confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from batchmill.worker.chaos.servers import ServerPair, has_written


@pytest.mark.parametrize(
    ("persistence", "expected"),
    [
        ({"loading": 0, "aof_buffer_length": 0}, True),
        ({"loading": 0, "aof_buffer_length": 126}, False),
        ({"loading": 1, "aof_buffer_length": 0}, False),
        ({"loading": 1}, False),
    ],
)
def test_a_server_has_written_if_its_buffer_is_empty(
    persistence: dict[str, Any], expected: bool
) -> None:
    assert has_written(persistence) is expected


def test_a_real_server_says_when_it_has_written(tmp_path: Path) -> None:
    servers = ServerPair(tmp_path, has_replica=False)
    servers.start()
    try:
        with redis.Redis.from_url(servers.url) as client:
            client.set("key", "value")
            servers.wait_until_written()
            servers.restart_primary()
            assert client.get("key") == b"value"
    finally:
        servers.stop()
