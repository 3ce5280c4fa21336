"""`batchmill dead-letters`: jobs and documents that were given up, and how to retry them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .attempt_table import print_history
from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

_group = typer.Typer(
    help="Dead letters: jobs, messages and webhooks that were given up.", no_args_is_help=True
)


def add_dead_letter_commands(app: typer.Typer) -> None:
    """Add `dead-letters list`, `show`, `retry` and `drop`."""
    app.add_typer(_group, name="dead-letters")


@_group.command(
    "list",
    epilog="Examples:\n\n  batchmill dead-letters list\n\n"
    "  batchmill dead-letters list --json | jq '.dead_letters[].reason'",
)
def list_dead_letters(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Maximum number of dead letters.")
    ] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Number of the newest to skip.")] = 0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, newest first. Payloads (prompts) are not shown."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.dead_letters import dead_letters_of_all

    with open_every_shard(broker_url) as shards:
        letters = dead_letters_of_all(shards, offset=offset, limit=limit)
        total = sum(shards.each(lambda store: store.counts().dead_letters))
        if as_json:
            rows = [_letter_fields(letter) for letter in letters]
            print_json({"total": total, "dead_letters": rows} | missing(shards))
            return
        print_table(
            pluralize(total, "dead letter"),
            ("id", "kind", "reason", "source", "at"),
            ((x.id, x.kind.value, x.reason, x.source, format_time_ms(x.at_ms)) for x in letters),
        )


_LetterArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id that `dead-letters list` shows.")
]


@_group.command("show", epilog="Example:\n\n  batchmill dead-letters show gen_…")
def show_letter(
    letter_id: _LetterArgument,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a dead letter with the attempts of its job. The payload (a prompt) is not shown."""
    from batchmill.producer.protocol.attempts import num_left_out

    with open_every_shard(broker_url) as shards:
        found = shards.find(lambda store: store.dead_letter(letter_id))
        if found is None:
            raise _unknown_letter_error(letter_id)
    _, letter = found
    if as_json:
        print_json(_letter_fields(letter))
        return
    rows: list[tuple[str, object]] = [
        ("kind", letter.kind.value),
        ("reason", letter.reason),
        ("source", letter.source or "-"),
        ("at", format_time_ms(letter.at_ms)),
        ("payload bytes", len(letter.payload)),
    ]
    print_table(letter.id, ("", ""), rows)
    if letter.history:
        print_history(letter.history, num_left_out(letter.history))


@_group.command("retry", epilog="Example:\n\n  batchmill dead-letters retry gen_…")
def retry_letter(
    letter_id: _LetterArgument,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retry a dead letter and remove it. A job keeps its id while its record exists."""
    from batchmill.producer.protocol import keys
    from batchmill.producer.settings import ProducerSettings
    from batchmill.producer.store.dead_letters import retry_dead_letter

    with open_every_shard(broker_url) as shards:
        found = shards.find(lambda store: store.dead_letter(letter_id))
        if found is None:
            raise _unknown_letter_error(letter_id)
        new_id = retry_dead_letter(found[0], letter_id, ProducerSettings())
    if new_id is None:
        raise _unknown_letter_error(letter_id)
    if as_json:
        print_json({"id": letter_id, "retried_as": new_id})
    else:
        place = "from the inbox" if new_id == keys.INBOX else f"as {new_id}"
        print(f"{letter_id} is retried {place}")


@_group.command("drop", epilog="Example:\n\n  batchmill dead-letters drop gen_…")
def drop_letter(
    letter_id: _LetterArgument,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a dead letter. The record of its job stays until it expires."""
    with open_every_shard(broker_url) as shards:
        if shards.find(lambda store: store.dead_letter_drop(letter_id) or None) is None:
            raise _unknown_letter_error(letter_id)
    if as_json:
        print_json({"id": letter_id, "dropped": True})
    else:
        print(f"{letter_id} is deleted")


def _unknown_letter_error(letter_id: str) -> CommandError:
    return CommandError(
        f"no dead letter {letter_id!r}: the id is wrong, it was retried or dropped, or it is older "
        "than 30 days; `batchmill dead-letters list` shows those that exist",
        code="unknown_dead_letter",
        exit_code=ExitCode.NOT_FOUND,
    )


def _letter_fields(letter: Any) -> dict[str, Any]:
    return {
        "id": letter.id,
        "kind": letter.kind.value,
        "reason": letter.reason,
        "source": letter.source,
        "at_ms": letter.at_ms,
        "payload_bytes": len(letter.payload),
        "history": [asdict(attempt) for attempt in letter.history],
    }
