"""The checks of `batchmill doctor` on the broker, or on each of several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .doctor_findings import Finding, Level
from .media_shortage import describe_shortage, models_without_decoders

if TYPE_CHECKING:
    from redis import Redis

    from batchmill.producer.shard_list import Shard, ShardList


def check_broker(broker_url: str | None) -> Iterable[Finding]:
    """Report what each server has, and whether it is the shard that the list says.

    Args:
        broker_url: as of the command; None takes the environment's, else the embedded broker.
    """
    from batchmill.producer.broker_url import find_broker
    from batchmill.producer.errors import BrokerUnavailable
    from batchmill.producer.shard_list import read_shard_list

    try:
        shards = read_shard_list(find_broker(broker_url))
    except (BrokerUnavailable, ValueError) as error:
        yield Finding(
            "broker", Level.PROBLEM, str(error), "run `batchmill up`, or set --broker-url"
        )
        return
    for shard in shards.shards:
        yield from _check_server(shard, shards)


def _check_server(shard: Shard, shards: ShardList) -> Iterable[Finding]:
    import redis

    from batchmill.producer.broker_url import redact
    from batchmill.producer.store.connection import connect

    url, name = redact(shard.url), f"broker {shard.name}".rstrip()
    try:
        client = connect(shard.url)
    except ValueError as error:
        yield Finding(name, Level.PROBLEM, str(error), "correct the URL")
        return
    try:
        yield from _examine_server(client, url, name)
        if shard.name:
            yield from _examine_mark(client, shard, shards)
    except redis.RedisError as error:
        variable = "BATCHMILL_BROKER_URLS" if shard.name else "BATCHMILL_BROKER_URL"
        remedy = f"start the broker, or correct {variable}"
        yield Finding(name, Level.PROBLEM, f"{url}: {error}", remedy)
    finally:
        client.close()


def _examine_server(client: Redis, url: str, name: str) -> Iterable[Finding]:
    """Report the version, eviction policy and persistence of a server that replies."""
    info = client.info()
    assert isinstance(info, dict)
    program = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info["redis_version"]))
    yield Finding(name, Level.OK, f"{program} {version} at {url}")
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: any other policy may drop jobs silently"
        yield Finding(f"{name} memory", Level.PROBLEM, f"maxmemory-policy is {policy}", remedy)
    yield from _examine_replicas(info, name)
    yield from _examine_inbox(client, name)
    yield from _examine_workers(client, name)
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes, or accept that a crash of the broker loses jobs"
        yield Finding(f"{name} persistence", Level.WARNING, "appendonly is off", remedy)


def _examine_mark(client: Redis, shard: Shard, shards: ShardList) -> Iterable[Finding]:
    """Report whether a broker is the shard that the list says, and accepts the list."""
    from batchmill.producer.errors import ShardMismatch
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.shard_mark import check_mark, read_mark

    mark = JobStore(client).read(read_mark())
    if mark is None:
        found = "no program has used it yet; the first one notes the list"
        yield Finding(f"broker {shard.name} list", Level.OK, found)
        return
    try:
        check_mark(mark, shard, shards)
    except ShardMismatch as error:
        remedy = "correct the list, or run `batchmill shards accept` with the new one"
        yield Finding(f"broker {shard.name} list", Level.PROBLEM, str(error), remedy)


def _examine_replicas(info: Mapping[str, Any], name: str) -> Iterable[Finding]:
    """Report whether the broker has the replicas that `BATCHMILL_BROKER_MIN_REPLICAS` asks for."""
    from batchmill.producer.plural import pluralize

    text = os.environ.get("BATCHMILL_BROKER_MIN_REPLICAS") or "0"
    num_replicas = int(info.get("connected_slaves", 0))
    if text.isdecimal() and num_replicas < int(text):
        found = (
            f"BATCHMILL_BROKER_MIN_REPLICAS is {text}, and the broker has "
            f"{pluralize(num_replicas, 'replica')}"
        )
        remedy = "start replicas, or lower the setting: until then each submit raises NotReplicated"
        yield Finding(f"{name} replicas", Level.PROBLEM, found, remedy)


def _examine_workers(client: Redis, name: str) -> Iterable[Finding]:
    """Warn of workers that leave jobs to others because an extra is not installed."""
    from batchmill.producer.install_hint import install_command
    from batchmill.producer.store.job_store import JobStore

    found_workers = JobStore(client).list_workers()
    workers = name.replace("broker", "worker")
    for model in models_without_decoders(found_workers):
        remedy = "jobs with pictures or sounds wait until then, or until their deadline"
        yield Finding(f"{workers}s of {model}", Level.WARNING, describe_shortage(model), remedy)
    for worker in found_workers:
        for extra in worker.lacks:
            found = f"{worker.name} leaves jobs to others: it lacks the extra {extra}"
            yield Finding(workers, Level.WARNING, found, f"install it: {install_command(extra)}")


def _examine_inbox(client: Redis, name: str) -> Iterable[Finding]:
    """Warn if documents wait in the inbox and no worker runs to take them."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.job_store import JobStore

    store = JobStore(client)
    num_documents = store.counts().inbox
    if num_documents and not store.list_workers():
        found = f"{pluralize(num_documents, 'document')} waiting, and no worker runs to take them"
        inbox = name.replace("broker", "inbox")
        yield Finding(inbox, Level.WARNING, found, "start a worker: batchmill worker")
