"""Keeps the history of the load while the console is served."""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import BatchmillError
from batchmill.producer.store.load_history import INTERVAL_MS, add_sample

from .fleet import Fleet
from .site import Site

_log = structlog.get_logger(__name__)
#: Programs that try this often never miss an interval; the script takes one sample of each.
_TRY_S = INTERVAL_MS / 1000 / 2


async def record_load(site: Site) -> None:
    """Store a sample per interval until cancelled. Of all gateways, one per interval does."""
    was_stored = True
    while True:
        try:
            await asyncio.to_thread(_record, site)
            was_stored = True
        except Exception as error:  # the next sample may be possible
            if was_stored:  # logged once per outage
                foreseen = isinstance(error, RedisError | BatchmillError)
                told = {} if foreseen else {"exc_info": error}
                _log.warning("load_not_recorded", error=type(error).__name__, **told)
            was_stored = False
        await asyncio.sleep(_TRY_S)


def _record(site: Site) -> None:
    shards = site.stores.look()
    shards.each(lambda store: store.run(add_sample(Fleet.read(store).sample())))
    shards.check()
