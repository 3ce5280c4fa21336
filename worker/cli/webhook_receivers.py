"""`batchmill webhooks receivers`: URLs that get events of all jobs and batches of a tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard
from .errors import CommandError, ExitCode, usage_error
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.store.every_shard import EveryShard
    from batchmill.producer.store.receivers import Receiver
    from batchmill.producer.webhook.target import TargetPolicy

_group = typer.Typer(
    help="Receivers of the events of all jobs and batches of a tenant.", no_args_is_help=True
)
_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the receiver: we_…")]
_Tenant = Annotated[str, typer.Option(metavar="NAME", help="The tenant whose receiver it is.")]
_TYPES = "A type of event, such as batch.completed. May be repeated."


def add_receiver_commands(group: typer.Typer) -> None:
    """Add `receivers` with `create`, `list`, `update`, `delete`, `rotate` and `test`."""
    group.add_typer(_group, name="receivers")


@contextmanager
def _every_shard(broker_url: str | None) -> Iterator[EveryShard]:
    """Connect to all shards, each of which has all receivers; an invalid field is a usage error."""
    from batchmill.producer.errors import ReceiverRefused

    with open_every_shard(broker_url) as shards:
        try:
            yield shards
        except ReceiverRefused as error:
            raise usage_error(str(error)) from None


@_group.command(
    "create",
    epilog="Example:\n\n  batchmill webhooks receivers create billing https://example.com/hook "
    "--event-type batch.completed --tenant acme",
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your own name for it.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="URL that gets the events.")],
    event_type: Annotated[list[str], typer.Option(metavar="TYPE", help=_TYPES)],
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a receiver and print its signing secret, which is shown only now.

    Types: batch.completed, .failed, .expired and .cancelled; response.completed, .failed,
    .cancelled and .incomplete of background responses; generation.completed, .failed, .cancelled
    and .expired of all jobs.
    """
    from batchmill.producer.store import receivers

    with _every_shard(broker_url) as shards:
        receiver, secret = receivers.make_receiver(name, url, event_type, _policy())
        call = receivers.create_receiver(tenant, receiver, receivers.new_secret_value(secret))
        were_stored = shards.each(lambda store: store.run(call))
        if not all(were_stored):
            shards.each(lambda store: store.read(receivers.delete_receiver(tenant, receiver.id)))
            raise usage_error(
                f"tenant {tenant} has {receivers.MAX_RECEIVERS} receivers, which is the limit; "
                "delete one"
            )
        if were_stored:
            _print_secret(shards, receiver, secret, as_json=as_json)


@_group.command("list", epilog="Example:\n\n  batchmill webhooks receivers list --tenant acme")
def list_receivers(
    tenant: _Tenant = "default", broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """List the receivers of a tenant, newest first."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.store.receivers import joined_receivers, load_receivers

    with _every_shard(broker_url) as shards:
        found = joined_receivers(shards.each(lambda store: store.read(load_receivers(tenant))))
        if as_json:
            rows = [receiver.model_dump(mode="json") for receiver in found]
            print_json({"receivers": rows} | missing(shards))
            return
        columns = ("id", "name", "url", "event types", "secret", "created")
        print_table(pluralize(len(found), "receiver"), columns, map(_row, found))


@_group.command(
    "update",
    epilog="Example:\n\n  batchmill webhooks receivers update we_0123 --url https://example.com/b",
)
def update(
    receiver_id: _Id,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    url: Annotated[str | None, typer.Option(help="Another URL.")] = None,
    event_type: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help=f"All its types. {_TYPES}")
    ] = None,
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the name, the URL or the types of events of a receiver."""
    from batchmill.producer.store import receivers

    given = {"name": name, "url": url, "event_types": tuple(event_type or ()) or None}
    changes = {field: value for field, value in given.items() if value is not None}
    with _every_shard(broker_url) as shards:
        receiver, _ = _find(shards, tenant, receiver_id)
        changed = receivers.changed_receiver(receiver, changes, _policy())
        shards.each(lambda store: store.read(receivers.put_receiver(tenant, changed)))
        _print(shards, changed, f"{changed.id} is updated", as_json=as_json)


@_group.command("delete", epilog="Example:\n\n  batchmill webhooks receivers delete we_0123")
def delete(
    receiver_id: _Id,
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a receiver. Events that wait for it become dead letters."""
    from batchmill.producer.store.receivers import delete_receiver

    with _every_shard(broker_url) as shards:
        receiver, _ = _find(shards, tenant, receiver_id)
        shards.each(lambda store: store.read(delete_receiver(tenant, receiver.id)))
        _print(shards, receiver, f"{receiver.id} is deleted", as_json=as_json)


@_group.command(
    "rotate", epilog="Example:\n\n  batchmill webhooks receivers rotate we_0123 --keep-old"
)
def rotate(
    receiver_id: _Id,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Let the old secret sign for another 24 hours.")
    ] = False,
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a receiver a new signing secret and print it, which is shown only now."""
    from batchmill.producer.store import receivers

    with _every_shard(broker_url) as shards:
        receiver, secrets = _find(shards, tenant, receiver_id)
        overlap_s = receivers.OVERLAP_S if keep_old else 0
        changed, secret, value = receivers.rotated(receiver, secrets, overlap_s=overlap_s)
        call = receivers.put_secrets(tenant, changed, value)
        shards.each(lambda store: store.run(call))
        _print_secret(shards, changed, secret, as_json=as_json)


@_group.command(
    "test", epilog="Example:\n\n  batchmill webhooks receivers test we_0123 batch.completed"
)
def send_test(
    receiver_id: _Id,
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="Type of the sample.")],
    tenant: _Tenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one signed sample of an event to a receiver, and show the outcome."""
    from batchmill.producer.store.receivers import EVENT_TYPES
    from batchmill.producer.webhook.secret_list import valid_secrets
    from batchmill.worker.webhooks.reasons import explain
    from batchmill.worker.webhooks.receiver_test import send_sample

    if event_type not in EVENT_TYPES:
        raise usage_error(f"TYPE must be one of {', '.join(EVENT_TYPES)}")
    with _every_shard(broker_url) as shards:
        receiver, secrets = _find(shards, tenant, receiver_id)
    own = valid_secrets(secrets)
    outcome = asyncio.run(send_sample(receiver.url, event_type, _policy(), own))
    text = "delivered" if outcome.delivered else "not delivered"
    if as_json:
        print_json(
            {"id": receiver.id, "delivered": outcome.delivered, "http_status": outcome.status}
            | {"reason": outcome.reason}
        )
    else:
        print(f"{receiver.id}: {text}: {explain(outcome.reason, receiver.url)}")
    if not outcome.delivered:
        raise typer.Exit(ExitCode.FAILED)


def _policy() -> TargetPolicy:
    from batchmill.producer.settings import ProducerSettings

    return ProducerSettings().target_policy


def _find(shards: EveryShard, tenant: str, receiver_id: str) -> tuple[Receiver, str]:
    from batchmill.producer.store.receivers import find_receiver

    found = shards.find(lambda store: store.read(find_receiver(tenant, receiver_id)))
    if found is None:
        raise CommandError(
            f"tenant {tenant} has no receiver {receiver_id!r}: `batchmill webhooks receivers list` "
            "shows all",
            code="unknown_receiver",
            exit_code=ExitCode.NOT_FOUND,
        )
    return found[1]


def _print(shards: EveryShard, receiver: Receiver, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(receiver.model_dump(mode="json") | missing(shards))
    else:
        print(text)


def _print_secret(shards: EveryShard, receiver: Receiver, secret: str, *, as_json: bool) -> None:
    if as_json:
        shown = {**receiver.model_dump(mode="json"), "signing_secret": secret}
        print_json(shown | missing(shards))
    else:
        print(f"{secret}\n\nIt signs the events for {receiver.id} ({receiver.url}). Keep the line")
        print("above: the secret is not shown again.")


def _row(receiver: Receiver) -> tuple[Any, ...]:
    return (
        *(receiver.id, receiver.name, receiver.url, ", ".join(receiver.event_types)),
        receiver.signing_secret_hint,
        format_time_ms(receiver.created_at * 1000),
    )
