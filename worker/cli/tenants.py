"""`batchmill tenants`: the waiting jobs of each tenant, and its weight and limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import open_store
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.tenants import Tenant

_group = typer.Typer(help="Tenants: their waiting jobs, weights and limits.", no_args_is_help=True)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the tenant, as in its jobs.")]


def add_tenant_commands(app: typer.Typer) -> None:
    """Add `tenants list`, `show`, `set`, `unset` and `window`."""
    app.add_typer(_group, name="tenants")


@contextmanager
def _tenant_store(broker_url: str | None) -> Iterator[JobStore]:
    """Connect to the broker; an invalid name or number becomes a usage error."""
    from batchmill.producer.errors import TenantRefused

    with open_store(broker_url) as store:
        try:
            yield store
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
    from batchmill.producer.store.tenants import list_tenants

    with _tenant_store(broker_url) as store:
        tenants = list_tenants(store)
    if as_json:
        print_json({"tenants": [asdict(tenant) for tenant in tenants]})
    else:
        _print_tenants(pluralize(len(tenants), "tenant"), tenants)


@_group.command("show", epilog="Example:\n\n  batchmill tenants show acme --json")
def show_tenant(
    name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Show the waiting jobs, weight and limits of a tenant."""
    from batchmill.producer.store.tenants import load_tenant

    with _tenant_store(broker_url) as store:
        _print_tenant(load_tenant(store, name), as_json=as_json)


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
    with _tenant_store(broker_url) as store:
        _print_tenant(set_tenant(store, name, changes), as_json=as_json)


@_group.command("unset", epilog="Example:\n\n  batchmill tenants unset acme")
def unset_tenant_limits(
    name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Remove a tenant's weight and limits: it then has weight 1 and no limits."""
    from batchmill.producer.store.tenants import load_tenant, unset_tenant

    with _tenant_store(broker_url) as store:
        unset_tenant(store, name)
        _print_tenant(load_tenant(store, name), as_json=as_json)


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

    with _tenant_store(broker_url) as store:
        if num_jobs is not None:
            set_window(store, num_jobs)
        number = read_window(store)
    if as_json:
        print_json({"window": number})
    else:
        print(number)


def _print_tenant(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(tenant))
    else:
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
