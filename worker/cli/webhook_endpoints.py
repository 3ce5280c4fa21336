"""`batchmill webhooks endpoints`, `enable` and `disable`: the receivers of webhooks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.endpoints import Endpoint

_Url = Annotated[str, typer.Argument(help="The endpoint's URL, as `webhooks endpoints` shows it.")]
_Tenant = Annotated[str, typer.Option(metavar="NAME", help="The tenant whose endpoint it is.")]
_ENABLE_EXAMPLE = "Example:\n\n  batchmill webhooks enable https://example.com/hook --redeliver"
_DISABLE_EXAMPLE = "Example:\n\n  batchmill webhooks disable https://example.com/hook"


def add_endpoint_commands(group: typer.Typer) -> None:
    """Add `endpoints`, `enable` and `disable`."""
    group.command("endpoints", epilog="Example:\n\n  batchmill webhooks endpoints")(list_endpoints)
    group.command("enable", epilog=_ENABLE_EXAMPLE)(enable_endpoint)
    group.command("disable", epilog=_DISABLE_EXAMPLE)(disable_endpoint)


def list_endpoints(
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of endpoints to show.")
    ] = 1000,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List endpoints with waiting events, or paused or disabled; the longest queue first.

    A failing endpoint has failed several times in a row: one event at a time is tried.
    """
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.endpoints import Endpoints, joined_endpoints

    with open_every_shard(broker_url) as shards:
        parts = shards.each(lambda store: Endpoints(store).page(limit=limit))
        joined = joined_endpoints(found for found, _ in parts)
        endpoints = joined[:limit]
        num_left_out = sum(number for _, number in parts) + len(joined) - len(endpoints)
        if as_json:
            rows = [asdict(x) for x in endpoints]
            print_json({"endpoints": rows, "num_left_out": num_left_out} | missing(shards))
            return
        more = f", {num_left_out} more (--limit)" if num_left_out else ""
        print_endpoints(pluralize(len(endpoints), "endpoint") + more, endpoints)


def print_endpoints(title: str, endpoints: list[Endpoint]) -> None:
    """Print endpoints as a table."""
    columns = ("tenant", "endpoint", "state", "waiting", "failures", "last error", "next attempt")
    print_table(title, columns, map(_row, endpoints))


def _row(endpoint: Endpoint) -> tuple[Any, ...]:
    state = endpoint.state.value
    if endpoint.disabled_at_ms is not None:
        since = format_time_ms(endpoint.disabled_at_ms)
        state = f"{state}: {endpoint.disabled_reason} since {since}"
    if endpoint.pause is not None:
        state = f"{state} since {format_time_ms(endpoint.pause.since_ms)} by {endpoint.pause.by}"
    return (
        endpoint.tenant,
        endpoint.url,
        state,
        endpoint.num_waiting,
        endpoint.num_failures or "-",
        endpoint.last_error or "-",
        format_time_ms(endpoint.next_attempt_at_ms),
    )


def enable_endpoint(
    url: _Url,
    tenant: _Tenant = "default",
    with_events: Annotated[
        bool,
        typer.Option("--redeliver", help="Also send the events again that were given up for it."),
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enable an endpoint that was disabled by a 410, by 120 hours of failures, or by `disable`."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.endpoints import Endpoints

    with open_every_shard(broker_url) as shards:
        if not any(shards.each(lambda store: Endpoints(store).enable(url, tenant=tenant))):
            shards.check()
            raise CommandError(
                f"{url!r} of tenant {tenant} is not disabled; `batchmill webhooks endpoints` shows "
                "those that are",
                code="unknown_endpoint",
                exit_code=ExitCode.NOT_FOUND,
            )
        num_events = 0
        if with_events:
            again = shards.each(lambda store: Endpoints(store).redeliver_all(url, tenant=tenant))
            num_events = sum(again)
        if as_json:
            shown = {"endpoint": url, "tenant": tenant, "num_redelivered": num_events}
            print_json(shown | missing(shards))
        else:
            print(f"{url} is enabled; {pluralize(num_events, 'event')} will be sent again")


def disable_endpoint(
    url: _Url,
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Disable an endpoint: its waiting and later events become dead letters without an attempt."""
    from batchmill.producer.store.endpoints import Endpoints

    with open_every_shard(broker_url) as shards:
        outcomes = shards.each(lambda store: Endpoints(store).disable(url, tenant=tenant))
        if as_json:
            shown = {"endpoint": url, "tenant": tenant, "changed": any(outcomes)}
            print_json(shown | missing(shards))
        elif outcomes:
            print(f"{url} is disabled" if any(outcomes) else f"{url} was disabled already")
