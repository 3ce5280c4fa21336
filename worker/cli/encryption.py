"""`batchmill encryption`: keys for encryption at rest."""

from __future__ import annotations

from typing import Annotated

import typer

from .encryption_rewrap import rewrap, show_seals
from .errors import usage_error

_group = typer.Typer(help="Keys that seal the content of jobs in Redis.", no_args_is_help=True)


def add_encryption_commands(app: typer.Typer) -> None:
    """Add `encryption new-key`, `list-keys`, `status` and `rewrap`."""
    _group.command("status", epilog="Example:\n\n  batchmill encryption status --json")(show_seals)
    _group.command("rewrap", epilog="Example:\n\n  batchmill encryption rewrap")(rewrap)
    app.add_typer(_group, name="encryption")


@_group.command(
    "new-key",
    epilog="Example:\n\n  batchmill encryption new-key 2026-12 > new_key",
)
def new_key(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Your own name for the key, such as the month in which it begins."
        ),
    ],
) -> None:
    """Print a new random key, as BATCHMILL_ENCRYPTION_KEYS lists it."""
    from batchmill.producer.encryption.key_ring import new_key as make_key
    from batchmill.producer.errors import EncryptionUnavailable

    try:
        print(make_key(name).to_text())
    except EncryptionUnavailable as error:
        raise usage_error(str(error)) from None


@_group.command("list-keys")
def list_keys() -> None:
    """List the ids of the keys that are set here, never the keys: the first one seals."""
    from batchmill.producer.encryption.settings import find_key_ring

    for place, key_id in enumerate(find_key_ring().key_ids):
        print(f"{key_id}  {'seals and opens' if place == 0 else 'opens'}")
