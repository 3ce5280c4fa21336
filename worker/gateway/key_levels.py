"""Keeps the API keys of all shards the same while the gateway runs."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError
from batchmill.producer.shard_list import read_shard_list
from batchmill.producer.store.api_keys import level_api_keys
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S

from .settings import GatewaySettings

_log = structlog.get_logger(__name__)
#: Seconds after which a shard that is back has the keys of the others, at most.
_INTERVAL_S: Final = 10.0


async def keep_keys_level(settings: GatewaySettings) -> None:
    """Give shards that were away the keys that were made or revoked meanwhile, until cancelled.

    With one broker there is nothing to do.
    """
    assert settings.broker_url is not None
    if read_shard_list(settings.broker_url).only is not None:
        return
    stores = JobStores.from_url(
        settings.broker_url, timeout_s=settings.broker_timeout_s, part_limit_s=COMPARE_LIMIT_S
    )
    try:
        while True:
            num_changed = 0
            try:
                num_changed = await asyncio.to_thread(lambda: level_api_keys(stores.look()))
            except (RedisError, BatchmillError) as error:
                _log.warning("api_keys_not_levelled", error=type(error).__name__)
            else:
                if num_changed:
                    _log.warning("api_keys_levelled", changes=num_changed)
            await asyncio.sleep(0 if num_changed else _INTERVAL_S)
    finally:
        stores.close()
