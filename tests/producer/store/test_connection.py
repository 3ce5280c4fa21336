"""Which refusals are the server's own, as redis-py hands them on."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ResponseError

from batchmill.producer.store.connection import is_server_fault


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
