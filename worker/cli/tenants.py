"""`batchmill tenants`: the waiting jobs of each tenant, and its weight and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.every_shard import EveryShard
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.tenants import Tenant

_group = typer.Typer(help="Tenants: their waiting jobs, weights and limits.", no_args_is_help=True)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the tenant, as in its jobs.")]


def add_tenant_commands(app: typer.Typer) -> None:
    """Add `tenants list`, `show`, `set`, `unset` and `window`."""
    app.add_typer(_group, name="tenants")


@contextmanager
def _every_shard(broker_url: str | None) -> Iterator[EveryShard]:
    """Connect to all shards; an invalid name or number becomes a usage error."""
    from batchmill.producer.errors import TenantRefused

    with open_every_shard(broker_url) as shards:
        try:
            yield shards
        except TenantRefused as error:
            raise usage_error(str(error)) from None


@_group.command(
    "list",
    epilog="Examples:\n\n  batchmill tenants list\n\n"
    "  batchmill tenants list --json | jq '.tenants[].usage.jobs'",
)
def list_all_tenants(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List tenants that have waiting jobs, a weight or limits."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.tenants import joined_tenants, list_tenants

    with _every_shard(broker_url) as shards:
        tenants = joined_tenants(shards.each(list_tenants))
        if as_json:
            print_json({"tenants": [asdict(tenant) for tenant in tenants]} | missing(shards))
        else:
            _print_tenants(pluralize(len(tenants), "tenant"), tenants)


@_group.command("show", epilog="Example:\n\n  batchmill tenants show acme --json")
def show_tenant(
    name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Show the waiting jobs, weight and limits of a tenant."""
    from batchmill.producer.store.tenants import load_tenant

    with _every_shard(broker_url) as shards:
        _print_tenant(shards, shards.each(lambda store: load_tenant(store, name)), as_json=as_json)


@_group.command(
    "set",
    epilog="Examples:\n\n  batchmill tenants set acme --weight 3\n\n"
    "  batchmill tenants set trial --max-jobs 10000 --max-tokens 5000000",
)
def set_tenant_limits(
    name: _Name,
    weight: Annotated[
        float | None, typer.Option(help="Share of the tokens relative to other tenants. \\[1]")
    ] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Maximum number of waiting jobs.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Maximum bytes of waiting job documents.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of waiting jobs, prompt and max_tokens.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a tenant's weight or limits, in force at once. Options that are left out stay."""
    from batchmill.producer.store.tenants import set_tenant

    given = {
        "weight": weight,
        "max_jobs": max_jobs,
        "max_bytes": max_bytes,
        "max_tokens": max_tokens,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise usage_error("nothing to set: give --weight, --max-jobs, --max-bytes or --max-tokens")
    with _every_shard(broker_url) as shards:
        changed = shards.each(lambda store: set_tenant(store, name, changes))
        _print_tenant(shards, changed, as_json=as_json)


@_group.command("unset", epilog="Example:\n\n  batchmill tenants unset acme")
def unset_tenant_limits(
    name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Remove a tenant's weight and limits: it then has weight 1 and no limits."""
    from batchmill.producer.store.tenants import load_tenant, unset_tenant

    def unset(store: JobStore) -> Tenant:
        unset_tenant(store, name)
        return load_tenant(store, name)

    with _every_shard(broker_url) as shards:
        _print_tenant(shards, shards.each(unset), as_json=as_json)


@_group.command(
    "window",
    epilog="Examples:\n\n  batchmill tenants window\n\n  batchmill tenants window 32",
)
def show_or_set_window(
    num_jobs: Annotated[
        int | None,
        typer.Argument(metavar="JOBS", help="The new number. Without it, show the present one."),
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set how many jobs of a queue are announced at a time.

    A new job waits for at least that many others. Hundreds of workers, or distant ones, need a
    larger number.
    """
    from batchmill.producer.store.tenants import read_window, set_window

    def set_and_read(store: JobStore) -> int:
        if num_jobs is not None:
            set_window(store, num_jobs)
        return read_window(store)

    with _every_shard(broker_url) as shards:
        by_shard = dict(shards.named(set_and_read))
        numbers = sorted(set(by_shard.values()))
        if as_json and numbers:
            differing = {"windows": by_shard} if len(numbers) > 1 else {}
            print_json({"window": numbers[0]} | differing | missing(shards))
        elif len(numbers) == 1:
            print(numbers[0])
        else:  # a shard was away when it was set
            print("\n".join(f"{number} in shard {name}" for name, number in by_shard.items()))


def _print_tenant(shards: EveryShard, parts: Sequence[Tenant], *, as_json: bool) -> None:
    from batchmill.producer.store.tenants import joined_tenants

    for tenant in joined_tenants([each] for each in parts):
        if as_json:
            print_json(asdict(tenant) | missing(shards))
            continue
        _print_tenants(f"Tenant {tenant.name}", [tenant])


def _print_tenants(title: str, tenants: list[Tenant]) -> None:
    print_table(
        title,
        ("tenant", "weight", "waiting jobs", "bytes", "tokens"),
        ([_name(tenant), f"{tenant.limits.weight:g}", *_amounts(tenant)] for tenant in tenants),
    )


def _name(tenant: Tenant) -> str:
    if tenant.pause is None:
        return tenant.name
    return f"{tenant.name} (paused since {format_time_ms(tenant.pause.since_ms)})"


def _amounts(tenant: Tenant) -> list[Any]:
    """Return the waiting jobs, bytes and tokens, each with its limit."""
    limits = (tenant.limits.max_jobs, tenant.limits.max_bytes, tenant.limits.max_tokens)
    usage = (tenant.usage.jobs, tenant.usage.bytes, tenant.usage.tokens)
    return [
        str(value) if limit is None else f"{value} of {limit}"
        for value, limit in zip(usage, limits, strict=True)
    ]
