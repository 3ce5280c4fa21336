"""`batchmill usage`: the tokens that jobs have used, by day, tenant, API key and model."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import usage_error
from .moments import parse_moment
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.usage_sums import Label, UsageSum

_DEFAULT_DAYS = 30
_AMOUNTS = ("jobs", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_DAY = "A day in UTC: 2026-12-01, or a distance such as 7d."


def add_usage_command(app: typer.Typer) -> None:
    """Add `usage`."""
    app.command(
        "usage",
        epilog="Examples:\n\n  batchmill usage\n\n"
        "  batchmill usage --by tenant,model --since 2026-11-01 --until 2026-11-30 --csv\n\n"
        "  batchmill usage --tenant acme --by day,key --json | jq '.data[].completion_tokens'",
    )(show_usage)


def show_usage(
    by: Annotated[
        str,
        typer.Option(
            metavar="LABELS", help="Sum up by these: day, tenant, key and model, with commas."
        ),
    ] = "day,tenant",
    since: Annotated[
        str | None,
        typer.Option(metavar="DAY", help=f"First day. {_DAY} \\[{_DEFAULT_DAYS - 1}d]"),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DAY", help="Last day, this one included. \\[today]")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="ID", help="Only of jobs that came by this API key.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to stdout.")] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens that jobs have used, of days in UTC.

    A job counts once, on the day of its end, however often it was tried; what a retry after the end
    adds counts on the day of the new end. Erasing jobs keeps these sums: they have no texts.
    """
    from batchmill.producer.store.usage_sums import grouped, usage_sums

    if as_csv and as_json:
        raise usage_error("give --csv or --json, not both")
    labels, today = _labels(by), datetime.now(UTC).date()
    first = _day("--since", since) or today - timedelta(days=_DEFAULT_DAYS - 1)
    last = _day("--until", until) or today
    try:
        read = usage_sums(first, last)
    except ValueError as error:
        raise usage_error(str(error)) from None
    with open_every_shard(broker_url) as shards:
        found = [each for part in shards.each(lambda store: store.read(read)) for each in part]
        wanted = {"tenant": tenant, "key": key, "model": model}
        sums = grouped((each for each in found if _has(each, wanted)), labels)
        if as_json:
            period = {"since": first.isoformat(), "until": last.isoformat()}
            print_json(period | {"data": [each.to_dict() for each in sums]} | missing(shards))
        elif as_csv:
            _print_csv(sums, labels)
        else:
            without = "".join(f", {each}" for each in shards.describe_missing())
            rows = [["-" if v == "" else v for v in _row(each, labels)] for each in sums]
            columns = [name.replace("_", " ") for name in (*labels, *_AMOUNTS)]
            print_table(f"{first} to {last} (UTC){without}", columns, rows)


def _print_csv(sums: Sequence[UsageSum], labels: Sequence[Label]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow((*labels, *_AMOUNTS))
    writer.writerows(_row(each, labels) for each in sums)


def _labels(text: str) -> list[Label]:
    from batchmill.producer.store.usage_sums import read_labels

    names = [name.strip() for name in text.split(",")]
    try:
        return sorted(read_labels(names), key=names.index)
    except ValueError as error:
        raise usage_error(f"--by {text!r} {error}") from None


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        return parse_moment(option, text, ahead=False).astimezone(UTC).date()


def _has(each: UsageSum, wanted: dict[str, str | None]) -> bool:
    return all(value is None or getattr(each, name) == value for name, value in wanted.items())


def _row(each: UsageSum, labels: Sequence[Label]) -> list[object]:
    return [*(getattr(each, name) for name in labels), *each.amounts]
