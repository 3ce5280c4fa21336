"""`batchmill lora`: the LoRA adapters that jobs may name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .lora_versions import list_versions, prune
from .options import BrokerUrlOption, JsonOption
from .registered_names import NameRegistry, list_names, register, remove_name, stored_version

if TYPE_CHECKING:
    from batchmill.producer.store.adapters import RegisteredAdapter


def _find_key() -> str:
    from batchmill.producer.protocol import keys

    return keys.ADAPTERS


_group = typer.Typer(help="LoRA adapters that jobs may name.", no_args_is_help=True)
_KIND = NameRegistry(
    "lora",
    "adapter",
    _find_key,
    "BATCHMILL_LORA_FOLDER",
    ("rank", lambda adapter: adapter.rank),
)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="What jobs call it: `lora` of a job.")]


def add_lora_commands(app: typer.Typer) -> None:
    """Add `lora add`, `list`, `remove`, `versions` and `prune`."""
    _group.command("versions", epilog="Example:\n\n  batchmill lora versions --json")(list_versions)
    _group.command("prune", epilog="Example:\n\n  batchmill lora prune --dry-run")(prune)
    app.add_typer(_group, name="lora")


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
    store = partial(_store, name, model, tuple(tenant or ()))
    adapter = stored_version(_KIND, source, folder, store)
    register(_KIND, adapter, broker_url, as_json=as_json)


@_group.command("list", epilog="Example:\n\n  batchmill lora list --json")
def list_adapters(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List all adapters that jobs may name."""
    list_names(_KIND, broker_url, as_json=as_json)


@_group.command("remove", epilog="Example:\n\n  batchmill lora remove legal")
def remove(name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Let no new job name an adapter. Submitted jobs still run; `prune` deletes its files later."""
    remove_name(_KIND, name, broker_url, as_json=as_json)


def _store(
    name: str, model: str, tenants: tuple[str, ...], source: Path, folder: Path
) -> RegisteredAdapter:
    from batchmill.engine.adapters.folder import read_files, store_files
    from batchmill.producer.store.adapters import RegisteredAdapter

    files = read_files(source)
    store_files(files, folder)
    return RegisteredAdapter(
        name=name,
        digest=files.digest,
        model=model,
        tenants=tenants,
        rank=files.rank,
        num_bytes=files.num_bytes,
    )
