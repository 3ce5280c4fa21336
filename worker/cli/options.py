"""Options that several commands share, and the values that options are parsed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .errors import usage_error
from .moments import MOMENT_FORMS, parse_moment

if TYPE_CHECKING:
    from batchmill.producer import JobFilter

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON to stdout, and errors as JSON to stderr.")
]
BrokerUrlOption = Annotated[
    str | None,
    typer.Option(
        "--broker-url",
        metavar="URL",
        help="A redis://, rediss:// or unix:// URL. Default: BATCHMILL_BROKER_URL, else the "
        "embedded broker of `batchmill up`.",
        show_default=False,
    ),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Continue until all have ended, with one line per change.")
]
IntervalOption = Annotated[
    float, typer.Option("--interval-s", min=0.1, help="Seconds between updates of --watch.")
]
TimeoutOption = Annotated[
    float | None, typer.Option(min=0, help="Maximum seconds to wait; 0 does not wait at all.")
]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the jobs.")]
TagOption = Annotated[str | None, typer.Option("--tag", help="Jobs with this tag.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Jobs of this tenant.")]
StateOption = Annotated[
    str | None,
    typer.Option("--state", help="queued, in_progress, completed, failed, cancelled or expired."),
]
ModelFilterOption = Annotated[
    str | None, typer.Option("--model", help="Jobs for this model, by its served name.")
]
QueueOption = Annotated[
    str | None,
    typer.Option("--queue", metavar="NAME", help="Jobs of a queue, as `status` lists it."),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help=f"Jobs submitted at this time or later: 30m, 2h or 1d ago, or {MOMENT_FORMS}.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="Jobs submitted before this time, as --since."),
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TEXT",
        help="Your own data, returned with the state and in webhooks. May be repeated.",
    ),
]
FlowerPortOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Port of Flower. Default: 5555, or a free one if that is in use."
    ),
]
NoFlowerOption = Annotated[bool, typer.Option("--no-flower", help="Do not start Flower.")]
GatewayPortOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Port of the gateway. Default: 8000, or a free one if that is in use.",
    ),
]
NoGatewayOption = Annotated[bool, typer.Option("--no-gateway", help="Do not start the gateway.")]


def job_filter(
    tag: str | None,
    tenant: str | None,
    state: str | None = None,
    model: str | None = None,
    queue: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> JobFilter:
    """Return the filters that are given.

    Raises:
        CommandError: a time is invalid.
    """
    texts = {"tag": tag, "tenant": tenant, "state": state, "model": model, "queue": queue}
    filters: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
    for name, text in (("since", since), ("until", until)):
        if text is not None:
            filters[name] = parse_moment(f"--{name}", text, ahead=False)
    return cast("JobFilter", filters)


def check_ids_or_filter(job_ids: Sequence[str], filters: JobFilter) -> None:
    """Refuse ids together with filters.

    Raises:
        CommandError: both are given.
    """
    if job_ids and filters:
        given = ", ".join(f"--{name}" for name in filters)
        raise usage_error(f"give either ids, or {given}, not both")


def parse_pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """Return the NAME=VALUE texts of an option as a mapping.

    Raises:
        CommandError: a text has no name or no equals sign.
    """
    pairs = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise usage_error(f"{option} {text!r} must have the form NAME=VALUE")
        pairs[name] = value
    return pairs


def parse_json_option(option: str, text: str) -> Any:
    """Return the JSON value of an option.

    Raises:
        CommandError: the text is not JSON.
    """
    # Here, because `batchmill --help` needs neither pydantic nor redis.
    from batchmill.producer.job.strict_json import read_strict_json

    try:
        return read_strict_json(text)
    except ValueError as error:
        raise usage_error(f"{option} must be JSON: {error}") from None
