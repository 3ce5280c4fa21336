"""The broker of a command, or its shards: which they are, and job stores connected to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .errors import CommandError, ExitCode

if TYPE_CHECKING:
    from batchmill.producer.shard_list import Shard, ShardList
    from batchmill.producer.store.every_shard import EveryShard, JobStores
    from batchmill.producer.store.job_store import JobStore

#: Names the shard that a command for one broker works with.
_SHARD_VARIABLE = "BATCHMILL_SHARD"


def resolve_broker(broker_url: str | None) -> str:
    """Return the given URL, else that of the environment, else the embedded broker's.

    It may be a list of shards.

    Raises:
        BrokerUnavailable: no broker is named and none runs here.
        CommandError: the URL is invalid.
    """
    from batchmill.producer.broker_url import find_broker

    try:
        return find_broker(broker_url)
    except ValueError as error:
        raise _invalid_url(error) from None


def resolve_one_broker(broker_url: str | None) -> str:
    """Return the same for a command that works with one broker; of a list, `BATCHMILL_SHARD`.

    Raises:
        BrokerUnavailable: no broker is named and none runs here.
        CommandError: the URL is invalid, or there are several and none is chosen.
    """
    from batchmill.producer.broker_url import url_of_shard

    try:
        return url_of_shard(resolve_broker(broker_url), os.environ.get(_SHARD_VARIABLE))
    except ValueError as error:
        raise _invalid_url(error) from None


def resolve_chosen_broker(broker_url: str | None) -> str:
    """Return the broker or the list of shards; of a list, the shard that `BATCHMILL_SHARD` names.

    Raises:
        BrokerUnavailable: no broker is named and none runs here.
        CommandError: the URL is invalid, or no shard has that name.
    """
    if os.environ.get(_SHARD_VARIABLE):
        return resolve_one_broker(broker_url)
    return resolve_broker(broker_url)


@contextmanager
def open_store(broker_url: str | None) -> Iterator[JobStore]:
    """Connect to the given broker, else to that of the environment, else to the embedded one.

    Raises:
        BrokerUnavailable: no broker is named and none runs here, or it does not reply.
        CommandError: the URL or `BATCHMILL_BROKER_TIMEOUT_S` is invalid, or there are several
            brokers and none is chosen.
    """
    url = resolve_one_broker(broker_url)
    with _connected(url) as store, _explained(url):
        yield store


@contextmanager
def open_stores(broker_url: str | None) -> Iterator[list[JobStore]]:
    """Connect to all shards, or to the one broker.

    Raises:
        BrokerUnavailable: as `open_store`.
        ShardMismatch: a shard belongs to another list.
        CommandError: as `open_store`.
    """
    with open_shards(broker_url) as shards:
        yield [store for _, store in shards]


@contextmanager
def open_shards(
    broker_url: str | None, *, is_checked: bool = True
) -> Iterator[Sequence[tuple[Shard, JobStore]]]:
    """Connect to all shards, with their names; a single broker is a shard without a name.

    Args:
        broker_url: the given one.
        is_checked: whether shards that belong to another list are refused.

    Raises:
        BrokerUnavailable, ShardMismatch, CommandError: as `open_stores`.
    """
    from batchmill.producer.shard_list import read_shard_list
    from batchmill.producer.store.shard_places import check_shard

    url = resolve_broker(broker_url)
    shards = read_shard_list(url)
    with ExitStack() as stack, _explained(url):
        stores = [stack.enter_context(_connected(each.url, each.name)) for each in shards.shards]
        pairs = list(zip(shards.shards, stores, strict=True))
        if is_checked and shards.only is None:
            for shard, store in pairs:
                check_shard(store, shard, shards)
        yield pairs


@contextmanager
def open_job_stores(
    broker_url: str | None, *, part_limit_s: float | None = None
) -> Iterator[JobStores]:
    """Connect to all shards; or to the one broker, or to that of `BATCHMILL_SHARD`.

    For commands that look at them again and again; others use `open_every_shard`.

    Args:
        broker_url: the given one.
        part_limit_s: as of `JobStores`.

    Raises:
        BrokerUnavailable, ShardMismatch, CommandError: as `open_store`.
    """
    from batchmill.producer.store.every_shard import JobStores

    with open_shards(resolve_chosen_broker(broker_url), is_checked=False) as pairs:
        stores = [store for _, store in pairs]
        yield JobStores(_list_of(pairs), stores, part_limit_s=part_limit_s)


@contextmanager
def open_every_shard(broker_url: str | None) -> Iterator[EveryShard]:
    """Connect to all shards and try each; or to the one broker, or to that of `BATCHMILL_SHARD`.

    What a command has found is shown before the error that names the shards that failed.

    Raises:
        BrokerUnavailable: as `open_store`; or some shards failed, at the end.
        ShardMismatch: a shard belongs to another list.
        CommandError: as `open_store`.
    """
    with open_job_stores(broker_url) as stores:
        found = stores.look()
        yield found
        found.check()


def missing(shards: EveryShard) -> dict[str, Sequence[str]]:
    """Return what a command's JSON says of shards that have failed; nothing without any."""
    return {"missing_shards": shards.missing} if shards.missing else {}


@contextmanager
def open_store_of(broker_url: str | None, some_id: str) -> Iterator[JobStore]:
    """Connect to the broker that has a job or a batch.

    Raises:
        BrokerUnavailable, ShardMismatch, CommandError: as `open_stores`.
    """
    from batchmill.producer.store.every_shard import JobStores

    with open_shards(broker_url, is_checked=False) as pairs:
        stores = JobStores(_list_of(pairs), [store for _, store in pairs], part_limit_s=None)
        is_batch = some_id.startswith("batch_")
        yield stores.of_batch(some_id) if is_batch else stores.of_job(some_id)


def _list_of(pairs: Sequence[tuple[Shard, JobStore]]) -> ShardList:
    from batchmill.producer.shard_list import ShardList

    return ShardList(tuple(shard for shard, _ in pairs))


@contextmanager
def _connected(url: str, shard_name: str = "") -> Iterator[JobStore]:
    from batchmill.producer.store.connection import connect
    from batchmill.producer.store.job_store import JobStore

    try:
        client = connect(url, shard_name=shard_name)
    except ValueError as error:
        raise CommandError(str(error), code="invalid_settings", exit_code=ExitCode.CONFIG) from None
    store = JobStore(client)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _explained(url: str) -> Iterator[None]:
    from batchmill.producer.store.broker_errors import broker_errors

    with broker_errors(url):
        yield


def _invalid_url(error: ValueError) -> CommandError:
    return CommandError(str(error), code="invalid_broker_url", exit_code=ExitCode.CONFIG)
