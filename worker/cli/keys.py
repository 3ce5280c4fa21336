"""`batchmill keys`: the API keys of the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode, usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.api_keys import ApiKey
    from batchmill.producer.store.every_shard import EveryShard

_group = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
_PER_MINUTE = "per minute; without it there is no limit."


def add_key_commands(app: typer.Typer) -> None:
    """Add `keys create`, `list` and `revoke`."""
    app.add_typer(_group, name="keys")


@contextmanager
def _every_shard(broker_url: str | None) -> Iterator[EveryShard]:
    """Connect to all shards, each of which has all keys; an invalid field is a usage error."""
    from batchmill.producer.errors import ApiKeyRefused

    with open_every_shard(broker_url) as shards:
        try:
            yield shards
        except ApiKeyRefused as error:
            raise usage_error(str(error)) from None


@_group.command(
    "create",
    epilog="Examples:\n\n  batchmill keys create billing --tenant acme\n\n"
    "  batchmill keys create trial --tenant trial --highest-class low --requests-per-minute 60",
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your own name for the key.")],
    tenant: Annotated[str, typer.Option(help="Tenant of its jobs, files and batches.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="A right: submit, read, texts (in the console), admin (all of these), or operator "
            "(all tenants, in the console). May be repeated. \\[submit, read]"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may use. May be repeated; without it, all."),
    ] = None,
    highest_class: Annotated[
        str, typer.Option(help="The highest class of its jobs: high, normal or low.")
    ] = "high",
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help=f"Requests {_PER_MINUTE}")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens, of prompts and outputs, {_PER_MINUTE}")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print its secret, which is shown only now.

    Once a key exists, the gateway refuses requests without one.
    """
    from batchmill.producer.store.api_keys import make_api_key, put_api_key

    with _every_shard(broker_url) as shards:
        key, secret = make_api_key(
            name,
            tenant=tenant,
            scopes=tuple(scope or ("submit", "read")),
            models=tuple(model or ()),
            highest_class=highest_class,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        if not shards.named(lambda store: put_api_key(store, key, secret)):
            return
        if as_json:
            print_json({**key.model_dump(mode="json"), "secret": secret} | missing(shards))
        else:
            print(f"{secret}\n\nThis is {key.id} of tenant {key.tenant}. Keep the line above: it")
            print("is not stored, and cannot be shown again.")


@_group.command("list", epilog="Example:\n\n  batchmill keys list --json")
def list_keys(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List all API keys, without their secrets."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.api_keys import joined_api_keys, list_api_keys

    with _every_shard(broker_url) as shards:
        found = joined_api_keys(dict(shards.named(list_api_keys)))
        if as_json:
            rows = [
                key.model_dump(mode="json") | ({"differs_in": names} if names else {})
                for key, names in found
            ]
            print_json({"keys": rows} | missing(shards))
            return
        print_table(
            pluralize(len(found), "API key"),
            ("id", "name", "begins with", "tenant", "rights", "models", "class", "limits", "state"),
            (_row(key, names) for key, names in found),
        )
        if any(names for _, names in found):
            print("Where keys differ: batchmill shards copy-settings SHARD, or revoke them again")


@_group.command("revoke", epilog="Example:\n\n  batchmill keys revoke key_0123456789abcdef")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key: key_…")],
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse an API key from the next request on. Its jobs continue."""
    from batchmill.producer.store.api_keys import revoke_in_every_shard

    with _every_shard(broker_url) as shards:
        parts = revoke_in_every_shard(shards, key_id)
        if not parts:
            shards.check()
            raise CommandError(
                f"API key {key_id!r} does not exist: `batchmill keys list` shows all",
                code="unknown_api_key",
                exit_code=ExitCode.NOT_FOUND,
            )
        _, key = parts[0]
        if as_json:
            print_json(key.model_dump(mode="json") | missing(shards))
        else:
            where = f" in {', '.join(name for name, _ in parts)}" if shards.missing else ""
            print(f"{key.id} ({key.name}) is revoked{where}.")


def _row(key: ApiKey, differs_in: list[str]) -> list[object]:
    limits = [
        f"{limit} {unit}/min"
        for limit, unit in (
            (key.requests_per_minute, "requests"),
            (key.tokens_per_minute, "tokens"),
        )
        if limit is not None
    ]
    revoked = key.revoked_at_ms
    return [
        key.id,
        key.name,
        f"{key.prefix}…",
        key.tenant,
        ", ".join(key.scopes),
        ", ".join(key.models) or "all",
        key.highest_class,
        ", ".join(limits) or "none",
        ("valid" if revoked is None else f"revoked {format_time_ms(revoked)}")
        + (f", differs in {', '.join(differs_in)}" if differs_in else ""),
    ]
