"""`batchmill webhooks`: failed deliveries, sending them again, and testing a receiver."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import open_store
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

_group = typer.Typer(
    help="Webhooks: show failed deliveries, send them again, test a receiver.",
    no_args_is_help=True,
)
_Event = Annotated[str, typer.Argument(help="Id of the event, as `webhooks list` shows it.")]


def add_webhook_commands(app: typer.Typer) -> None:
    """Add `webhooks list`, `show`, `redeliver`, `enable` and `test`."""
    app.add_typer(_group, name="webhooks")


@_group.command("list", epilog="Example:\n\n  batchmill webhooks list")
def list_failed_webhooks(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of the newest dead letters to look at.")
    ] = 1000,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries that were given up, newest first, and disabled endpoints."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.protocol.records import DeadLetterKind
    from batchmill.producer.store.deliveries import Deliveries

    with open_store(broker_url) as store:
        endpoints = Deliveries(store).disabled_endpoints()
        letters = [x for x in store.dead_letters(limit=limit) if x.kind is DeadLetterKind.WEBHOOK]
    rows = [
        {
            "event_id": letter.id,
            "outcome": letter.reason,
            "last_error": letter.payload.decode(errors="replace"),
            "url": letter.source,
            "at_ms": letter.at_ms,
        }
        for letter in letters
    ]
    if as_json:
        print_json({"webhooks": rows, "disabled_endpoints": [asdict(x) for x in endpoints]})
        return
    both = zip(rows, letters, strict=True)
    print_table(
        f"{pluralize(len(rows), 'webhook')} given up",
        ("event", "outcome", "last error", "url", "at"),
        ((*list(row.values())[:-1], format_time_ms(letter.at_ms)) for row, letter in both),
    )
    if endpoints:
        print_table(
            f"{pluralize(len(endpoints), 'endpoint')} disabled "
            "(to enable one: batchmill webhooks enable ENDPOINT)",
            ("endpoint", "reason", "since"),
            ((x.endpoint, x.reason, format_time_ms(x.at_ms)) for x in endpoints),
        )


@_group.command("show", epilog="Example:\n\n  batchmill webhooks show evt_gen_…_completed")
def show_event(
    event_id: _Event, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Show the delivery of an event: its state, and its last attempts with status and duration."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.deliveries import Deliveries

    with open_store(broker_url) as store:
        event = Deliveries(store).event(event_id)
    if event is None:
        raise _unknown_event_error(event_id)
    if as_json:
        print_json(asdict(event))
        return
    due = "" if event.due_at_ms is None else f", next attempt at {format_time_ms(event.due_at_ms)}"
    print_table(
        f"{event.id}: {event.state}, {pluralize(event.attempts, 'attempt')}{due}",
        ("at", "status", "reason", "seconds"),
        (
            (format_time_ms(x.at_ms), x.http_status or "-", x.reason, f"{x.duration_ms / 1000:.3f}")
            for x in event.log
        ),
    )


@_group.command(
    "redeliver", epilog="Example:\n\n  batchmill webhooks redeliver evt_gen_…_completed"
)
def redeliver_event(
    event_id: _Event, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Send an event again, with the same id and body, on a new retry schedule."""
    from batchmill.producer.protocol.outbox import RedeliverStatus

    with open_store(broker_url) as store:
        status = store.outbox_redeliver(event_id)
    if status is RedeliverStatus.UNKNOWN:
        raise _unknown_event_error(event_id)
    if status is RedeliverStatus.DISABLED:
        raise CommandError(
            f"the endpoint of {event_id} is disabled; find it with `batchmill webhooks list`, then "
            "run `batchmill webhooks enable`",
            code="endpoint_disabled",
            exit_code=ExitCode.FAILED,
        )
    if as_json:
        print_json({"event_id": event_id, "outcome": status.value.lower()})
    elif status is RedeliverStatus.PENDING:
        print(f"{event_id} is already waiting for delivery")
    else:
        print(f"{event_id} will be sent again")


@_group.command(
    "enable", epilog="Example:\n\n  batchmill webhooks enable https://example.com/hook --redeliver"
)
def enable_endpoint(
    endpoint: Annotated[str, typer.Argument(help="The endpoint, as `webhooks list` shows it.")],
    with_events: Annotated[
        bool,
        typer.Option("--redeliver", help="Also send the events again that were given up for it."),
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enable an endpoint that was disabled by a 410, or by 120 hours of failures."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.deliveries import Deliveries

    with open_store(broker_url) as store:
        deliveries = Deliveries(store)
        if not deliveries.enable(endpoint):
            raise CommandError(
                f"{endpoint!r} is not disabled; `batchmill webhooks list` shows those that are",
                code="unknown_endpoint",
                exit_code=ExitCode.NOT_FOUND,
            )
        num_events = deliveries.redeliver_all(endpoint) if with_events else 0
    if as_json:
        print_json({"endpoint": endpoint, "num_redelivered": num_events})
    else:
        print(f"{endpoint} is enabled; {pluralize(num_events, 'event')} will be sent again")


@_group.command("test", epilog="Example:\n\n  batchmill webhooks test https://example.com/hook")
def send_test_event(
    url: Annotated[str, typer.Argument(help="URL of the receiver.")],
    secret: Annotated[
        str, typer.Option(metavar="NAME", help="Sign with this entry of BATCHMILL_WEBHOOK_SECRETS.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Send one signed `webhook.test` event by the deliverer's rules, and show the outcome."""
    from batchmill.worker.webhooks.probe import send_probe
    from batchmill.worker.webhooks.settings import WebhookSettings

    found = send_probe(url, WebhookSettings(), secret_name=secret)
    if as_json:
        print_json(asdict(found))
    else:
        print(f"{found.event_id}: {found.reason} after {found.duration_ms} ms")
    if not found.delivered:
        raise typer.Exit(ExitCode.FAILED)


def _unknown_event_error(event_id: str) -> CommandError:
    return CommandError(
        f"no event {event_id!r}: the id is wrong, or it was settled more than eight days ago",
        code="unknown_event",
        exit_code=ExitCode.NOT_FOUND,
    )
