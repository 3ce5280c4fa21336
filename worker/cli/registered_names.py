"""What the commands of LoRA adapters and of steering vectors have in common: names in Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode, usage_error

if TYPE_CHECKING:
    from batchmill.producer.store.adapters import RegisteredAdapter
    from batchmill.producer.store.every_shard import EveryShard


@dataclass(frozen=True, slots=True)
class NameRegistry:
    """A kind of thing that jobs name, and the words for it."""

    #: The command, and the field of a job: `lora`.
    command: str
    #: In sentences: `adapter`.
    noun: str
    #: Returns the key of the names in Redis. A function, because the help imports no client.
    find_key: Callable[[], str]
    folder_variable: str
    #: Title and value of the column that only this kind has.
    column: tuple[str, Callable[[RegisteredAdapter], int]]

    @property
    def key(self) -> str:
        """Key of the names in Redis."""
        return self.find_key()


@contextmanager
def _every_shard(broker_url: str | None) -> Iterator[EveryShard]:
    """Connect to all shards, each of which has all names; an invalid field is a usage error."""
    from batchmill.producer.errors import AdapterRefused

    with open_every_shard(broker_url) as shards:
        try:
            yield shards
        except AdapterRefused as error:
            raise usage_error(str(error)) from None


def stored_version(
    kind: NameRegistry,
    source: Path,
    folder: Path | None,
    store: Callable[[Path, Path], RegisteredAdapter],
) -> RegisteredAdapter:
    """Copy a version to the workers' folder; return it without its name.

    Args:
        kind: What it is.
        source: What the operator gave.
        folder: Where workers look; None is what the environment says.
        store: Checks the source, copies it to a folder, and returns the version.

    Raises:
        CommandError: it cannot be used, or there is no folder.
    """
    path = workers_folder(folder, kind.noun, kind.folder_variable)
    with adapter_errors(f"{source}: "):
        return store(source, path)


def workers_folder(folder: Path | None, noun: str, variable: str) -> Path:
    """Return the folder of all versions: the given one, else that of the environment.

    Raises:
        CommandError: neither names one.
    """
    given = folder or os.environ.get(variable)
    if not given:
        raise usage_error(
            f"the workers' folder of {noun}s is not known: give --folder, or set {variable}"
        )
    return Path(given).expanduser()


@contextmanager
def adapter_errors(prefix: str = "") -> Iterator[None]:
    """Turn the error of a version, or of the folder, into one of the command."""
    from batchmill.engine.errors import AdapterError

    try:
        yield
    except AdapterError as error:
        raise CommandError(
            f"{prefix}{error}", code="adapter_refused", exit_code=ExitCode.USAGE
        ) from None


def register(
    kind: NameRegistry, adapter: RegisteredAdapter, broker_url: str | None, *, as_json: bool
) -> None:
    """Let a name stand for a version, and say so."""
    from batchmill.producer.store.adapters import register_adapter

    with _every_shard(broker_url) as shards:
        replies = shards.each(lambda store: register_adapter(store, adapter, kind.key))
        if not replies:
            return
        if as_json:
            print_json(adapter.model_dump(mode="json") | missing(shards))
            return
        title, value = kind.column
        number = f"{title} {value(adapter)}"
        print(f"{adapter.name} is version {adapter.digest} of {adapter.model}, {number}.")
        before = next((each for each in replies if each is not None), None)
        if before is not None and before.digest != adapter.digest:
            print(f"Jobs that were submitted before run with {before.digest}.")


def list_names(kind: NameRegistry, broker_url: str | None, *, as_json: bool) -> None:
    """Print all names that jobs may give."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.adapters import joined_adapters, read_adapters

    with _every_shard(broker_url) as shards:
        parts = shards.named(lambda store: store.read(read_adapters(kind.key)))
        found = joined_adapters(dict(parts))
        if as_json:
            rows = [
                adapter.model_dump(mode="json") | ({"differs_in": names} if names else {})
                for adapter, names in found
            ]
            print_json({f"{kind.noun}s": rows} | missing(shards))
            return
        title, value = kind.column
        print_table(
            pluralize(len(found), kind.noun),
            ("name", "model", "version", title, "size", "tenants", "added"),
            (_row(adapter, value(adapter), names) for adapter, names in found),
        )
        if any(names for _, names in found):
            print("Where they differ: batchmill shards copy-settings SHARD, or add them again")


def remove_name(kind: NameRegistry, name: str, broker_url: str | None, *, as_json: bool) -> None:
    """Let a name stand for nothing.

    Raises:
        CommandError: it stood for nothing before.
    """
    from batchmill.producer.store.adapters import remove_adapter

    with _every_shard(broker_url) as shards:
        if not any(shards.each(lambda store: remove_adapter(store, name, kind.key))):
            shards.check()
            raise CommandError(
                f"{kind.noun} {name!r} does not exist: `batchmill {kind.command} list` shows all",
                code="unknown_adapter",
                exit_code=ExitCode.NOT_FOUND,
            )
        if as_json:
            print_json({"name": name, "removed": True} | missing(shards))
        else:
            print(f"{name} is removed; new jobs cannot name it.")


def _row(adapter: RegisteredAdapter, value: int, differs_in: list[str]) -> Sequence[object]:
    return [
        adapter.name + (f" (differs in {', '.join(differs_in)})" if differs_in else ""),
        adapter.model,
        adapter.digest,
        value,
        format_size(adapter.num_bytes),
        ", ".join(adapter.tenants) or "all",
        format_time_ms(adapter.added_at_ms),
    ]


def format_size(num_bytes: int) -> str:
    """Return the size of a version for people."""
    return f"{num_bytes / 2**20:.1f} MiB"
