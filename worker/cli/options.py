"""Options that several commands share, and the values that options are parsed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .errors import usage_error

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
TimeoutOption = Annotated[
    float | None, typer.Option(min=0, help="Maximum seconds to wait; 0 does not wait at all.")
]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the jobs.")]
TagOption = Annotated[str | None, typer.Option("--tag", help="Jobs with this tag.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Jobs of this tenant.")]
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


def check_ids_or_filter(job_ids: Sequence[str], tag: str | None, tenant: str | None) -> None:
    """Refuse ids together with a tag or a tenant.

    Raises:
        CommandError: both are given.
    """
    if job_ids and (tag is not None or tenant is not None):
        raise usage_error("give either ids, or --tag and --tenant, not both")


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
