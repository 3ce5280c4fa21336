"""`batchmill webhooks replay`: events since a time, sent again."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json

from .broker_connection import resolve_broker
from .errors import usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer import ReplayCounts

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN_GONE = 20
_EPILOG = (
    "Examples:\n\n  batchmill webhooks replay --since 2h --endpoint https://example.com/hook\n\n"
    "  batchmill webhooks replay --since 2026-01-31T12:00:00Z --failed-only --json"
)


def add_replay_command(group: typer.Typer) -> None:
    """Add `replay`."""
    group.command("replay", epilog=_EPILOG)(replay)


def replay(
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Events written since then: a time such as 2026-01-31T12:00:00Z (UTC without a "
            "zone), or how long ago, such as 90m, 24h or 7d.",
        ),
    ],
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Only events for this URL.")
    ] = None,
    tenant: Annotated[
        str, typer.Option(metavar="NAME", help="The tenant whose endpoint it is.")
    ] = "default",
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="Only events of this job or batch.")
    ] = None,
    receiver: Annotated[
        str | None, typer.Option(metavar="ID", help="Only events for this registered receiver.")
    ] = None,
    failed_only: Annotated[
        bool, typer.Option("--failed-only", help="Only events that were not delivered.")
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send webhooks again since a time, with the same ids and bodies, after all other webhooks.

    Events are kept for eight days after their last attempt. Those that are gone are named.
    """
    from batchmill.producer import Client, ReplayCounts

    reached = ReplayCounts()

    def note(counts: ReplayCounts) -> None:
        nonlocal reached
        reached = counts

    moment = parse_since(since)
    with Client(resolve_broker(broker_url)) as client:
        try:
            counts = client.replay_webhooks(
                moment,
                endpoint=endpoint,
                tenant=tenant,
                job_id=job,
                receiver_id=receiver,
                failed_only=failed_only,
                on_progress=note,
            )
        except KeyboardInterrupt:
            begin = reached.continue_from or moment
            print(f"to continue: --since {begin.isoformat()}", file=sys.stderr)
            raise
    if as_json:
        shown = asdict(counts)
        shown.pop("continue_from")
        print_json(shown)
    else:
        _print(counts)


def _print(counts: ReplayCounts) -> None:
    print(f"{counts.num_replayed} will be sent again")
    if counts.num_waiting:
        print(f"{counts.num_waiting} wait for delivery already")
    if counts.num_disabled:
        print(f"{counts.num_disabled} are for a disabled endpoint: batchmill webhooks enable URL")
    if gone := counts.gone:
        more = f" and {len(gone) - _SHOWN_GONE} more (--json)" if len(gone) > _SHOWN_GONE else ""
        print(f"{len(gone)} are no longer kept: {', '.join(gone[:_SHOWN_GONE])}{more}")


def parse_since(text: str) -> datetime:
    """Return a time, or an age before now, as a time with its zone.

    Raises:
        CommandError: it is neither.
    """
    try:
        if match := re.fullmatch(r"(\d{1,9})([smhd])", text):
            return datetime.now(UTC) - timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise usage_error(
            f"--since is {text!r}; it must be a time such as 2026-01-31T12:00:00Z, or an age such "
            "as 90m, 24h or 7d"
        ) from None
