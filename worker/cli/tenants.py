"""`batchmill tenants`: who waits for what, and the operator's weights and limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_store
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.tenants import Tenant

_group = typer.Typer(
    help="Whose jobs wait; weights and limits, in force at once.", no_args_is_help=True
)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant, as jobs name it.")]


def add_tenant_commands(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_group, name="tenants")


@contextmanager
def _tenant_store(broker_url: str | None) -> Iterator[JobStore]:
    """A store; a name or number that cannot be is an error of the command line."""
    from batchmill.producer.errors import TenantRefused

    with open_store(broker_url) as store:
        try:
            yield store
        except TenantRefused as error:
            raise CommandError(str(error), code="usage", exit_code=ExitCode.USAGE) from None


@_group.command(
    "list",
    epilog="Examples:\n\n  batchmill tenants list\n\n"
    "  batchmill tenants list --json | jq '.tenants[].usage.jobs'",
)
def list_all(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List tenants that have jobs waiting, or something set."""
    from batchmill.producer.counted import counted
    from batchmill.producer.store.tenants import list_tenants

    with _tenant_store(broker_url) as store:
        tenants = list_tenants(store)
    if as_json:
        print_json({"tenants": [asdict(tenant) for tenant in tenants]})
    else:
        _print(counted(len(tenants), "tenant"), tenants)


@_group.command("show", epilog="Example:\n\n  batchmill tenants show acme --json")
def show(name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Show one tenant."""
    from batchmill.producer.store.tenants import load_tenant

    with _tenant_store(broker_url) as store:
        _tell(load_tenant(store, name), as_json=as_json)


@_group.command(
    "set",
    epilog="Examples:\n\n  batchmill tenants set acme --weight 3\n\n"
    "  batchmill tenants set trial --max-jobs 10000 --max-tokens 5000000",
)
def set_one(
    name: _Name,
    weight: Annotated[
        float | None, typer.Option(help="Share of the tokens against others. \\[1]")
    ] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Jobs that may wait.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Bytes of job documents that may wait.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens that may wait, prompt and most output.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a tenant's weight or limits; what is not given stays."""
    from batchmill.producer.store.tenants import set_tenant

    given = {
        "weight": weight,
        "max_jobs": max_jobs,
        "max_bytes": max_bytes,
        "max_tokens": max_tokens,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise CommandError(
            "nothing to set: give --weight, --max-jobs, --max-bytes or --max-tokens",
            code="usage",
            exit_code=ExitCode.USAGE,
        )
    with _tenant_store(broker_url) as store:
        _tell(set_tenant(store, name, changes), as_json=as_json)


@_group.command("unset", epilog="Example:\n\n  batchmill tenants unset acme")
def unset(name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Take back a tenant's weight and limits: weight 1, no limits."""
    from batchmill.producer.store.tenants import load_tenant, unset_tenant

    with _tenant_store(broker_url) as store:
        unset_tenant(store, name)
        _tell(load_tenant(store, name), as_json=as_json)


@_group.command(
    "window",
    epilog="Examples:\n\n  batchmill tenants window\n\n  batchmill tenants window 32",
)
def window(
    num_jobs: Annotated[
        int | None, typer.Argument(metavar="JOBS", help="The new number. Without it, show it.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set how many jobs of a queue are announced at a time.

    A late job waits for so many others at least; hundreds of workers, or distant ones, need more.
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


def _tell(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(tenant))
    else:
        _print(f"Tenant {tenant.name}", [tenant])


def _print(title: str, tenants: list[Tenant]) -> None:
    print_table(
        title,
        ("tenant", "weight", "waiting jobs", "bytes", "tokens"),
        ([tenant.name, f"{tenant.limits.weight:g}", *_amounts(tenant)] for tenant in tenants),
    )


def _amounts(tenant: Tenant) -> list[Any]:
    """What waits, of what may."""
    limits = (tenant.limits.max_jobs, tenant.limits.max_bytes, tenant.limits.max_tokens)
    usage = (tenant.usage.jobs, tenant.usage.bytes, tenant.usage.tokens)
    return [
        str(value) if limit is None else f"{value} of {limit}"
        for value, limit in zip(usage, limits, strict=True)
    ]
