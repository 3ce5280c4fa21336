"""What operators see of a shard, with the rights that a producer has in Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.shard_state import read_shard_state

USER = "shard-reader"


@pytest.fixture
def restricted(redis_url: str) -> Iterator[JobStore]:
    """A store whose user has no dangerous commands, as those in compose/users.acl."""
    admin = redis.Redis.from_url(redis_url)
    admin.acl_setuser(
        USER,
        enabled=True,
        passwords=["+secret"],
        keys=["batchmill:*"],
        categories=["+@all", "-@dangerous"],
    )
    client = redis.Redis.from_url(redis_url, username=USER, password="secret")
    yield JobStore(client)
    client.close()
    admin.acl_deluser(USER)
    admin.close()


def test_open_batches_are_counted_without_dangerous_commands(
    redis_url: str, restricted: JobStore
) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        for name, state in {"batch_1": "in_progress", "batch_2": "completed"}.items():
            admin.zadd(keys.BATCHES, {name: 1})
            admin.hset(keys.batch(name), "state", state)
        admin.zadd(keys.BATCHES, {"batch_gone": 1, "batch_forged": 1})
        admin.set(keys.batch("batch_forged"), "x")

    found = read_shard_state(restricted)

    assert (found.batches, found.is_drained) == (1, False)
