"""LoRA adapters and steering vectors that jobs may name: versions, models and tenants."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from batchmill.producer.errors import AdapterRefused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored

from .job_store import JobStore


class RegisteredAdapter(BaseModel):
    """What a name stands for."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    #: Of its configuration and weights: new jobs get this version.
    digest: str
    #: Served name of the model that it changes.
    model: str
    #: Tenants whose jobs may name it; empty for all.
    tenants: tuple[str, ...] = ()
    #: Largest rank of an adapter.
    rank: int = 0
    #: Layers that a steering vector has a direction for.
    num_layers: int = 0
    #: Size of the file with its weights.
    num_bytes: int = 0
    added_at_ms: int = 0

    def is_for(self, tenant: str) -> bool:
        """Return whether a tenant's jobs may name it."""
        return not self.tenants or tenant in self.tenants


def register_adapter(
    store: JobStore, adapter: RegisteredAdapter, registry: str = keys.ADAPTERS
) -> RegisteredAdapter | None:
    """Let a name stand for an adapter from now on; jobs that were submitted keep their version.

    Args:
        store: Where.
        adapter: The adapter, or the steering vector.
        registry: `keys.ADAPTERS`, or `keys.STEERING_VECTORS`.

    Returns:
        What the name stood for before; None if it is new.

    Raises:
        AdapterRefused: the name, the model or a tenant is invalid.
    """
    if not keys.is_adapter_name(adapter.name):
        raise AdapterRefused(
            f"name is {adapter.name[:80]!r}; it must be 1 to 64 letters, digits, _ . and -"
        )
    if not keys.is_model_name(adapter.model):
        raise AdapterRefused(f"model is {adapter.model[:80]!r}, which is not a served model's name")
    for tenant in adapter.tenants:
        if not keys.is_tenant_name(tenant):
            raise AdapterRefused(
                f"tenant is {tenant[:80]!r}; it must be 1 to 64 letters, digits, _ . and -"
            )
    adapter = adapter.model_copy(update={"added_at_ms": time.time_ns() // 1_000_000})
    before = store.client.hget(registry, adapter.name)
    store.client.hset(registry, adapter.name, adapter.model_dump_json())
    return None if before is None else _read(before)


def remove_adapter(store: JobStore, name: str, registry: str = keys.ADAPTERS) -> bool:
    """Let a name stand for nothing; jobs that were submitted still run. Return whether it did."""
    return bool(store.client.hdel(registry, name))


def read_adapters(registry: str = keys.ADAPTERS) -> Read[list[RegisteredAdapter]]:
    """Read all adapters, or all steering vectors, by name."""

    def queue(pipeline: Any) -> None:
        pipeline.hgetall(registry)

    def parse(replies: Sequence[Any]) -> list[RegisteredAdapter]:
        found = map(_read, stored(replies[0], default={}).values())
        return sorted((each for each in found if each is not None), key=lambda each: each.name)

    return Read(queue, parse)


def joined_adapters(
    parts: Mapping[str, Sequence[RegisteredAdapter]],
) -> list[tuple[RegisteredAdapter, list[str]]]:
    """Return the newest version of each name in all shards, with the shards that have another.

    Args:
        parts: the adapters of each shard, by its name. All shards have the same, unless one was
            away when they changed.
    """
    digests = {shard: {each.name: each.digest for each in part} for shard, part in parts.items()}
    newest: dict[str, RegisteredAdapter] = {}
    for adapter in (each for part in parts.values() for each in part):
        known = newest.get(adapter.name)
        if known is None or adapter.added_at_ms > known.added_at_ms:
            newest[adapter.name] = adapter
    return [
        (each, [shard for shard, own in digests.items() if own.get(name) != each.digest])
        for name, each in sorted(newest.items())
    ]


def _read(text: bytes | str) -> RegisteredAdapter | None:
    """Return an adapter; None if batchmill did not write it, which counts as missing."""
    try:
        return RegisteredAdapter.model_validate_json(text)
    except ValidationError:
        return None
