"""`batchmill steering`: the steering vectors that jobs may name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import BrokerUrlOption, JsonOption, parse_json_option
from .registered_names import NameRegistry, list_names, register, remove_name, stored_version

if TYPE_CHECKING:
    from batchmill.producer.store.adapters import RegisteredAdapter


def _find_key() -> str:
    from batchmill.producer.protocol import keys

    return keys.STEERING_VECTORS


_group = typer.Typer(help="Steering vectors that jobs may name.", no_args_is_help=True)
_KIND = NameRegistry(
    "steering",
    "vector",
    _find_key,
    "BATCHMILL_STEERING_FOLDER",
    ("layers", lambda vector: vector.num_layers),
)
_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="What jobs call it: `steering` of a job.")
]


def add_steering_commands(app: typer.Typer) -> None:
    """Add `steering add`, `list` and `remove`."""
    app.add_typer(_group, name="steering")


def parse_steering(text: str | None) -> dict[str, Any] | None:
    """Return the field `steering` of an option: a name, or JSON with strength and layers.

    Raises:
        CommandError: the text begins like JSON and is none.
    """
    if text is None:
        return None
    given = parse_json_option("--steering", text) if text.startswith("{") else {"name": text}
    return dict(given)


@_group.command(
    "add",
    epilog="Examples:\n\n  batchmill steering add formal ./formal.gguf --model qwen3-8b\n\n"
    "  batchmill steering add calm ./calm.safetensors --model qwen3-8b --tenant acme",
)
def add(
    name: _Name,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A control vector of llama.cpp (.gguf), or a .safetensors file."
        ),
    ],
    model: Annotated[str, typer.Option(help="Served name of the model that it steers.")],
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="A tenant whose jobs may name it. May be repeated; without it, all."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where workers look for vectors: their BATCHMILL_STEERING_FOLDER, which is the "
            "default."
        ),
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a vector into the workers' folder, under its digest, and let jobs name it.

    A name that exists gets the new version for new jobs; submitted ones keep theirs.
    """
    store = partial(_store, name, model, tuple(tenant or ()))
    vector = stored_version(_KIND, source, folder, store)
    register(_KIND, vector, broker_url, as_json=as_json)


@_group.command("list", epilog="Example:\n\n  batchmill steering list --json")
def list_vectors(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List all steering vectors that jobs may name."""
    list_names(_KIND, broker_url, as_json=as_json)


@_group.command("remove", epilog="Example:\n\n  batchmill steering remove formal")
def remove(name: _Name, broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Let no new job name a vector. Submitted jobs still run; its files stay."""
    remove_name(_KIND, name, broker_url, as_json=as_json)


def _store(
    name: str, model: str, tenants: tuple[str, ...], source: Path, folder: Path
) -> RegisteredAdapter:
    from batchmill.engine.steering.vector_file import read_vectors, store_vectors
    from batchmill.producer.store.adapters import RegisteredAdapter

    files = read_vectors(source)
    store_vectors(files, folder)
    return RegisteredAdapter(
        name=name,
        digest=files.digest,
        model=model,
        tenants=tenants,
        num_layers=len(files.directions),
        num_bytes=files.num_bytes,
    )
