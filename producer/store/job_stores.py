"""Job stores of all shards, for services and operators."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.producer.shard_list import Shard, read_shard_list

from .job_store import JobStore
from .shard_places import check_shard


def open_job_stores(url: str) -> list[tuple[Shard, JobStore]]:
    """Return a store for each shard of a URL; a URL alone is one shard without a name.

    Nothing is sent yet.

    Raises:
        ValueError: the list or a URL is invalid.
    """
    shards = read_shard_list(url).shards
    return [(shard, JobStore.from_url(shard.url, shard_name=shard.name)) for shard in shards]


def check_job_stores(url: str, stores: Sequence[tuple[Shard, JobStore]]) -> None:
    """Check that all stores are the shards of the list. One without a name is not checked.

    Raises:
        ShardMismatch: one is another shard, or belongs to another list.
        redis.exceptions.RedisError: one does not reply.
    """
    shards = read_shard_list(url)
    for shard, store in stores:
        if shard.name:
            check_shard(store, shard, shards)
