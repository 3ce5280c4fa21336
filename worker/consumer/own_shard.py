"""The broker of a worker: of several shards, the one that it serves."""

from __future__ import annotations

import structlog
from redis.exceptions import RedisError

from batchmill.producer.broker_url import find_broker, url_of_shard
from batchmill.producer.shard_list import read_shard_list
from batchmill.producer.store.shard_places import check_shard
from batchmill.producer.store.start_check import refuse_unsupported
from batchmill.producer.store.store import Store
from batchmill.worker.settings import WorkerSettings

_log = structlog.stdlib.get_logger("batchmill.shards")
#: Seconds for the check at the start: a worker also starts while its broker is away.
_CHECK_TIMEOUT_S = 3.0


def broker_of_worker(settings: WorkerSettings) -> str:
    """Return the URL of the worker's one broker.

    Raises:
        BrokerUnavailable: no broker is set and no embedded one runs.
        ValueError: there are several shards, and the settings name none or one that does not exist.
    """
    return url_of_shard(find_broker(settings.broker), settings.shard)


def check_own_broker(settings: WorkerSettings) -> None:
    """Check that the worker's broker is supported, and that its shard is the one of its list.

    Raises:
        BrokerUnavailable: no broker is set and no embedded one runs.
        UnsupportedBroker: the server is too old, or runs in cluster mode.
        ShardMismatch: it is another shard, or belongs to another list.
    """
    refuse_unsupported(broker_of_worker(settings))
    _check_own_shard(settings)


def _check_own_shard(settings: WorkerSettings) -> None:
    shards = read_shard_list(find_broker(settings.broker))
    if shards.only is not None or not settings.shard:
        return
    shard = shards.named(settings.shard)
    store = Store.from_url(shard.url, timeout_s=_CHECK_TIMEOUT_S)
    try:
        check_shard(store, shard, shards)
    except RedisError as error:
        _log.warning("shard_not_checked", shard=shard.name, error=type(error).__name__)
    else:
        _log.info("shard_served", shard=shard.name, shards=shards.names)
    finally:
        store.close()
