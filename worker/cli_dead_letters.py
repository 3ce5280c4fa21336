"""`batchmill dead-letters`: what was given up, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .cli_broker import open_store
from .cli_output import BrokerUrlOption, JsonOption, print_json, print_table
from .cli_status import moment

_group = typer.Typer(help="Jobs, messages and webhooks that were given up.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_group, name="dead-letters")


@_group.command(
    "list",
    epilog="Examples:\n\n  batchmill dead-letters list\n\n"
    "  batchmill dead-letters list --json | jq '.dead_letters[].reason'",
)
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out the newest so many.")] = 0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, newest first. Payloads (prompts) are not shown."""
    with open_store(broker_url) as store:
        letters = store.dead_letters(offset=offset, limit=limit)
        total = store.counts().dead_letters
    if as_json:
        print_json({"total": total, "dead_letters": [_describe(letter) for letter in letters]})
        return
    print_table(
        f"{total} dead letters",
        ("id", "kind", "reason", "source", "at"),
        ((x.id, x.kind.value, x.reason, x.source, moment(x.at_ms)) for x in letters),
    )


def _describe(letter: Any) -> dict[str, Any]:
    return {
        "id": letter.id,
        "kind": letter.kind.value,
        "reason": letter.reason,
        "source": letter.source,
        "at_ms": letter.at_ms,
        "payload_bytes": len(letter.payload),
    }
