"""The timer of the gateway that keeps the API keys of all shards the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.store.api_keys import create_api_key, list_api_keys, revoke_api_key
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.gateway import key_levels
from batchmill.worker.gateway.key_levels import keep_keys_level
from batchmill.worker.gateway.settings import GatewaySettings


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_keys_are_levelled_again_and_again_also_after_an_error(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_levels, "_INTERVAL_S", 0.05)
    urls = {"a": f"{redis_url}?db=0", "b": f"{redis_url}?db=1"}
    stores = {name: JobStore.from_url(url) for name, url in urls.items()}
    settings = GatewaySettings(broker_url=" ".join(f"{name}={url}" for name, url in urls.items()))

    def have(name: str, *expected: tuple[str, bool]) -> Callable[[], bool]:
        def found() -> bool:
            listed = list_api_keys(stores[name])
            return {(key.id, key.revoked_at_ms is None) for key in listed} == set(expected)

        return found

    async def check() -> None:
        levelling = asyncio.create_task(keep_keys_level(settings))
        first, _ = create_api_key(stores["a"], "one")
        await until(have("b", (first.id, True)))
        revoke_api_key(stores["b"], first.id)
        await until(have("a", (first.id, False)))
        # A key of another type cannot be written to; the next round does it.
        stores["b"].client.delete(keys.API_KEYS)
        stores["b"].client.set(keys.API_KEYS, "foreign")
        await asyncio.sleep(0.2)
        assert not levelling.done()
        stores["b"].client.delete(keys.API_KEYS)
        second, _ = create_api_key(stores["a"], "two")
        await until(have("b", (first.id, False), (second.id, True)))
        levelling.cancel()
        await asyncio.gather(levelling, return_exceptions=True)

    asyncio.run(check())
    for store in stores.values():
        store.close()


def test_one_broker_needs_no_timer(redis_url: str) -> None:
    settings = GatewaySettings(broker_url=redis_url)
    asyncio.run(asyncio.wait_for(keep_keys_level(settings), 30))
