"""`batchmill payloads`: the object store, compared with what Redis knows of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_stores
from .errors import CommandError, ExitCode
from .options import BrokerUrlOption, JsonOption

_group = typer.Typer(help="Large prompts and results in the object store.", no_args_is_help=True)


def add_payload_commands(app: typer.Typer) -> None:
    """Add `payloads check`."""
    app.add_typer(_group, name="payloads")


@_group.command(
    "check",
    epilog="Examples:\n\n  batchmill payloads check\n\n  batchmill payloads check --repair",
)
def check(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Note again what Redis has lost: workers delete what nothing refers to an hour "
            "later. Only if no other broker uses the same store.",
        ),
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the objects in the store, by what Redis knows of them. Nothing is deleted here."""
    from batchmill.producer.payloads.settings import find_object_store
    from batchmill.producer.store.payload_check import check_payloads

    objects = find_object_store()
    if objects is None:
        raise CommandError(
            "no object store is set: name it in BATCHMILL_PAYLOAD_URL, as for the workers",
            code="invalid_settings",
            exit_code=ExitCode.CONFIG,
        )
    with open_stores(broker_url) as stores:
        counts = check_payloads(objects, stores, repairs=repair)
    if as_json:
        print_json(asdict(counts))
        return
    rows = [
        ("noted: looked up by the sweeps", counts.noted),
        ("due for deletion", counts.unused),
        ("needed, and not noted", counts.lost),
        ("needed by nothing, and not noted", counts.orphaned),
        ("other files, which are left alone", counts.foreign),
    ]
    print_table("Objects", ("", "number"), rows)
    if repair:
        print(f"{counts.repaired} noted again; workers delete those not needed in an hour")
    elif counts.lost or counts.orphaned:
        print("Redis has lost its index of some objects: run it with --repair")
