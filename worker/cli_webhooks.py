"""`batchmill webhooks`: deliveries that were given up, and sending them again."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_broker import open_store
from .cli_output import (
    BrokerUrlOption,
    CommandError,
    ExitCode,
    JsonOption,
    print_json,
    print_table,
)
from .cli_status import moment

_group = typer.Typer(help="Webhook deliveries that were given up.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_group, name="webhooks")


@_group.command("list", epilog="Example:\n\n  batchmill webhooks list")
def list_webhooks(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Look at so many of the newest dead letters.")
    ] = 1000,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries that were given up, newest first."""
    from batchmill.producer.answers import DeadLetterKind

    with open_store(broker_url) as store:
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
        print_json({"webhooks": rows})
        return
    both = zip(rows, letters, strict=True)
    print_table(
        f"{len(rows)} webhooks given up",
        ("event", "outcome", "last error", "url", "at"),
        ((*list(row.values())[:-1], moment(letter.at_ms)) for row, letter in both),
    )


@_group.command(
    "redeliver", epilog="Example:\n\n  batchmill webhooks redeliver evt_gen_…_completed"
)
def redeliver(
    event_id: Annotated[str, typer.Argument(help="The event, as `webhooks list` shows it.")],
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send an event again, with the same id and body and a fresh schedule."""
    from batchmill.producer.answers import RedeliverStatus

    with open_store(broker_url) as store:
        status = store.outbox_redeliver(event_id)
    if status is RedeliverStatus.UNKNOWN:
        raise CommandError(
            f"no event {event_id!r}: there never was, or it was settled more than eight days ago",
            code="unknown_event",
            exit_code=ExitCode.NOT_FOUND,
        )
    if as_json:
        print_json({"event_id": event_id, "outcome": status.value.lower()})
    elif status is RedeliverStatus.PENDING:
        print(f"{event_id} is waiting for delivery already")
    else:
        print(f"{event_id} is sent again")
