"""`batchmill shards`: several brokers as one system, and how their list changes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_shards, resolve_broker
from .errors import CommandError, ExitCode, usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.shard_list import Shard, ShardList
    from batchmill.producer.store.job_store import JobStore

_group = typer.Typer(help="Shards: several brokers as one system.", no_args_is_help=True)
_COLUMNS = (
    *("shard", "broker", "new jobs", "list", "waiting", "in progress", "arriving", "batches"),
    *("webhooks", "results kept", "files kept", "drained"),
)


def add_shard_commands(app: typer.Typer) -> None:
    """Add `shards list`, `accept` and `copy-settings`."""
    app.add_typer(_group, name="shards")


@_group.command(
    "list",
    epilog="Examples:\n\n  batchmill shards list\n\n"
    "  batchmill shards list --json | jq '.shards[] | select(.drained) | .name'",
)
def list_shards(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Show each shard: whether it takes new jobs, knows this list, and has work left."""
    shards = _read_list(broker_url)
    with open_shards(broker_url, is_checked=False) as pairs:
        rows = [_describe(shard, store, shards) for shard, store in pairs]
    if as_json:
        print_json({"names": shards.names, "fingerprint": shards.fingerprint, "shards": rows})
        return
    print_table("Shards", _COLUMNS, [_row(each) for each in rows])


@_group.command(
    "accept",
    epilog="Example, before the programs get the new list:\n\n"
    "  BATCHMILL_BROKER_URLS='a:draining=redis://one b=redis://two' batchmill shards accept",
)
def accept(
    only: Annotated[
        bool, typer.Option("--only", help="Refuse programs that still have the list before.")
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make this list known to all its shards. Until --only, the list before is accepted as well."""
    from batchmill.producer.store.shard_mark import accept_list, accept_only, all_lists, read_mark

    shards = _read_list(broker_url)
    with open_shards(broker_url, is_checked=False) as pairs:
        marks = [store.read(read_mark()) for _, store in pairs]
        for (shard, _), mark in zip(pairs, marks, strict=True):
            if mark is not None and mark.name != shard.name:
                raise usage_error(
                    f"the broker listed as shard {shard.name!r} has noted that it is shard "
                    f"{mark.name!r}: correct the names in the list"
                )
        lists = all_lists(shards, marks)
        for (shard, store), mark in zip(pairs, marks, strict=True):
            note = accept_list(shard, shards, mark, lists)
            store.read(accept_only(shard, shards, lists) if only else note)
    if as_json:
        print_json({"names": shards.names, "fingerprint": shards.fingerprint})
    else:
        print(f"accepted in all shards: {shards.names}")


@_group.command(
    "copy-settings",
    epilog="Example, for a shard that was added:\n\n  batchmill shards copy-settings a",
)
def copy_all_settings(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The shard to copy from.")],
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give all other shards the tenants, API keys, pauses and receivers of one, for their own."""
    from batchmill.producer.store.shard_state import copy_settings

    with open_shards(broker_url) as pairs:
        stores = {shard.name: store for shard, store in pairs}
        if source not in stores:
            raise CommandError(
                f"there is no shard {source!r}; the list has {', '.join(stores)}",
                code="unknown_shard",
                exit_code=ExitCode.NOT_FOUND,
            )
        others = [name for name in stores if name != source]
        copied = {name: copy_settings(stores[source], stores[name]) for name in others}
    if as_json:
        print_json({"from": source, "copied": copied})
    else:
        print(f"copied from {source} to {', '.join(others)}")


def _read_list(broker_url: str | None) -> ShardList:
    from batchmill.producer.shard_list import read_shard_list

    shards = read_shard_list(resolve_broker(broker_url))
    if shards.only is not None:
        raise usage_error(
            "there is one broker and no list of shards: set BATCHMILL_BROKER_URLS, as in "
            "'a=redis://one:6379/0 b=redis://two:6379/0'"
        )
    return shards


def _describe(shard: Shard, store: JobStore, shards: ShardList) -> dict[str, Any]:
    import redis

    from batchmill.producer.broker_url import redact
    from batchmill.producer.store.shard_mark import read_mark
    from batchmill.producer.store.shard_state import read_shard_state

    found = {"name": shard.name, "broker": redact(shard.url), "draining": shard.is_draining}
    try:
        mark, state = store.read(read_mark()), read_shard_state(store)
    except (redis.RedisError, OSError) as error:
        return found | {"list": "unknown", "problem": str(error), "drained": None}
    if mark is None:
        known = "none yet"
    elif mark.name != shard.name:
        known = f"of shard {mark.name}"
    else:
        known = "this" if shards.fingerprint in mark.accepted else mark.names
    return found | {"list": known} | asdict(state) | {"drained": state.is_drained}


def _row(shard: dict[str, Any]) -> tuple[object, ...]:
    numbers = ("waiting", "in_progress", "arriving", "batches", "webhooks", "kept", "files")
    drained = {True: "yes", False: "no", None: "does not reply"}[shard["drained"]]
    return (
        *(shard["name"], shard["broker"], "no, draining" if shard["draining"] else "yes"),
        *(shard["list"], *(shard.get(name, "-") for name in numbers), drained),
    )
