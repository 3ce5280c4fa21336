"""`batchmill lora`: the LoRA adapters that jobs may name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import open_stores
from .errors import CommandError, ExitCode, usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.adapters import RegisteredAdapter
    from batchmill.producer.store.job_store import JobStore

_group = typer.Typer(help="LoRA adapters that jobs may name.", no_args_is_help=True)
_FOLDER_VARIABLE = "BATCHMILL_LORA_FOLDER"
_Name = Annotated[str, typer.Argument(metavar="NAME", help="What jobs call it: `lora` of a job.")]


def add_lora_commands(app: typer.Typer) -> None:
    """Add `lora add`, `list` and `remove`."""
    app.add_typer(_group, name="lora")


@contextmanager
def _adapter_stores(broker_url: str | None) -> Iterator[list[JobStore]]:
    """Connect to the broker or all its shards; an invalid field becomes a usage error."""
    from batchmill.producer.errors import AdapterRefused

    with open_stores(broker_url) as stores:
        try:
            yield stores
        except AdapterRefused as error:
            raise usage_error(str(error)) from None


@_group.command(
    "add",
    epilog="Examples:\n\n  batchmill lora add legal ./legal-adapter --model qwen3-8b\n\n"
    "  batchmill lora add acme ./acme --model qwen3-8b --tenant acme --folder /srv/adapters",
)
def add(
    name: _Name,
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder that PEFT's save_pretrained has written."),
    ],
    model: Annotated[str, typer.Option(help="Served name of the model that it changes.")],
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="A tenant whose jobs may name it. May be repeated; without it, all."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where workers look for adapters: their BATCHMILL_LORA_FOLDER, which is the "
            "default."
        ),
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an adapter into the workers' folder, under its digest, and let jobs name it.

    A name that exists gets the new version for new jobs; submitted ones keep theirs.
    """
    from batchmill.engine.adapters.folder import read_files, store_files
    from batchmill.engine.errors import AdapterError
    from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter

    try:
        files = read_files(source)
        store_files(files, _workers_folder(folder))
    except AdapterError as error:
        raise CommandError(
            f"{source}: {error}", code="adapter_refused", exit_code=ExitCode.USAGE
        ) from None
    adapter = RegisteredAdapter(
        name=name,
        digest=files.digest,
        model=model,
        tenants=tuple(tenant or ()),
        rank=files.rank,
        num_bytes=files.num_bytes,
    )
    with _adapter_stores(broker_url) as stores:
        before, *_ = [register_adapter(store, adapter) for store in stores]
    if as_json:
        print_json(adapter.model_dump(mode="json"))
        return
    print(f"{name} is version {files.digest} of {model}, of rank {files.rank}.")
    if before is not None and before.digest != files.digest:
        print(f"Jobs that were submitted before run with {before.digest}.")


@_group.command("list", epilog="Example:\n\n  batchmill lora list --json")
def list_adapters(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List all adapters that jobs may name."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.adapters import read_adapters

    with _adapter_stores(broker_url) as stores:
        found = stores[0].read(read_adapters())
    if as_json:
        print_json({"adapters": [each.model_dump(mode="json") for each in found]})
        return
    print_table(
        pluralize(len(found), "adapter"),
        ("name", "model", "version", "rank", "size", "tenants", "added"),
        map(_row, found),
    )


@_group.command("remove", epilog="Example:\n\n  batchmill lora remove legal")
def remove(name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Let no new job name an adapter. Submitted jobs still run; its files stay."""
    from batchmill.producer.store.adapters import remove_adapter

    with _adapter_stores(broker_url) as stores:
        were_removed = [remove_adapter(store, name) for store in stores]
    if not any(were_removed):
        raise CommandError(
            f"adapter {name!r} does not exist: `batchmill lora list` shows all",
            code="unknown_adapter",
            exit_code=ExitCode.NOT_FOUND,
        )
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        print(f"{name} is removed; new jobs cannot name it.")


def _workers_folder(folder: Path | None) -> Path:
    given = folder or os.environ.get(_FOLDER_VARIABLE)
    if not given:
        raise usage_error(
            "the workers' folder of adapters is not known: give --folder, or set "
            f"{_FOLDER_VARIABLE}"
        )
    return Path(given).expanduser()


def _row(adapter: RegisteredAdapter) -> list[Any]:
    return [
        adapter.name,
        adapter.model,
        adapter.digest,
        adapter.rank,
        f"{adapter.num_bytes / 2**20:.1f} MiB",
        ", ".join(adapter.tenants) or "all",
        format_time_ms(adapter.added_at_ms),
    ]
