"""`batchmill pause` and `resume`: a queue, a tenant or a webhook endpoint."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard, resolve_broker
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.protocol.pauses import Pause
    from batchmill.producer.store.job_store import JobStore

_pause = typer.Typer(
    help="Let the jobs of a queue or a tenant, or the webhooks of an endpoint, wait.",
    no_args_is_help=True,
)
_resume = typer.Typer(help="End a pause.", no_args_is_help=True)

_Queue = Annotated[
    str, typer.Argument(metavar="NAME", help="A queue, such as batchmill.demo.normal.")
]
_Tenant = Annotated[str, typer.Argument(metavar="NAME", help="A tenant.")]
_Url = Annotated[str, typer.Argument(help="The URL of a webhook, query included.")]
_OfTenant = Annotated[
    str, typer.Option("--tenant", metavar="NAME", help="The tenant whose endpoint it is.")
]
_Reason = Annotated[str, typer.Option(help="Why; shown with the pause.")]
_Refuse = Annotated[
    bool, typer.Option("--refuse", help="Refuse new jobs meanwhile, instead of letting them wait.")
]
_JOB_EXAMPLE = "Example:\n\n  batchmill {0} queue batchmill.demo.low"
_TENANT_EXAMPLE = "Example:\n\n  batchmill {0} tenant acme"
_URL_EXAMPLE = "Example:\n\n  batchmill {0} endpoint https://example.com/hook"


def add_pause_commands(app: typer.Typer) -> None:
    """Add `pause` and `resume`, each for a queue, a tenant and an endpoint."""
    app.add_typer(_pause, name="pause")
    app.add_typer(_resume, name="resume")


@_pause.command("list", epilog="Example:\n\n  batchmill pause list")
def list_pauses(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """List everything that is paused, the oldest pause first."""
    from batchmill.producer.protocol.pauses import joined_pauses
    from batchmill.producer.store.pauses import Pauses

    with open_every_shard(broker_url) as shards:
        pauses = joined_pauses(shards.each(lambda store: Pauses(store).all()))
        if as_json:
            print_json({"pauses": [asdict(pause) for pause in pauses]} | missing(shards))
        else:
            print_pauses(f"{len(pauses)} paused", pauses)


@_pause.command("queue", epilog=_JOB_EXAMPLE.format("pause"))
def pause_queue(
    name: _Queue,
    reason: _Reason = "",
    refuse: _Refuse = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the jobs of a model in one class wait. Running jobs go on, and deadlines pass."""
    _set_pause({"queue": name}, reason, broker_url, refuses=refuse, as_json=as_json)


@_pause.command("tenant", epilog=_TENANT_EXAMPLE.format("pause"))
def pause_tenant(
    name: _Tenant,
    reason: _Reason = "",
    refuse: _Refuse = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the jobs of a tenant wait, in all queues. Running jobs go on, and deadlines pass."""
    _set_pause({"tenant": name}, reason, broker_url, refuses=refuse, as_json=as_json)


@_pause.command("endpoint", epilog=_URL_EXAMPLE.format("pause"))
def pause_endpoint(
    url: _Url,
    tenant: _OfTenant = "default",
    reason: _Reason = "",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the webhooks of an endpoint wait. Deliveries in flight go on."""
    _set_pause({"endpoint": url, "tenant": tenant}, reason, broker_url, as_json=as_json)


@_resume.command("queue", epilog=_JOB_EXAMPLE.format("resume"))
def resume_queue(
    name: _Queue, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Announce the jobs of a queue again, in their order."""
    _end_pause({"queue": name}, broker_url, as_json=as_json)


@_resume.command("tenant", epilog=_TENANT_EXAMPLE.format("resume"))
def resume_tenant(
    name: _Tenant, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """Announce the jobs of a tenant again, in their order."""
    _end_pause({"tenant": name}, broker_url, as_json=as_json)


@_resume.command("endpoint", epilog=_URL_EXAMPLE.format("resume"))
def resume_endpoint(
    url: _Url,
    tenant: _OfTenant = "default",
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send the webhooks of an endpoint again."""
    _end_pause({"endpoint": url, "tenant": tenant}, broker_url, as_json=as_json)


def print_pauses(title: str, pauses: list[Pause]) -> None:
    """Print pauses as a table."""
    print_table(title, *pause_table(pauses))


def pause_table(pauses: Sequence[Pause]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Return the columns and rows of pauses."""
    rows = [
        (
            *(x.kind.value, x.name, format_time_ms(x.since_ms), x.by or "-", x.reason or "-"),
            "refused" if x.refuses else "wait",
        )
        for x in pauses
    ]
    return ("what", "name", "since", "by", "reason", "new jobs"), rows


def tell_if_paused(store: JobStore, job_id: str) -> None:
    """Say on stderr if a job waits because its queue or tenant is paused."""
    pause = pause_of_job(store, job_id)
    if pause is not None:
        print(f"{job_id} waits: {pause.describe()}", file=sys.stderr)


def pause_of_job(store: JobStore, job_id: str) -> Pause | None:
    """Return the pause that keeps a job waiting; None if it does not wait or is not paused."""
    from batchmill.producer.protocol.replies import JobState
    from batchmill.producer.store.pauses import Pauses

    record = store.load(job_id)
    if record is None or record.state is not JobState.QUEUED:
        return None
    return Pauses(store).of_job(record.queue, record.tenant)


def _set_pause(
    target: Mapping[str, str],
    reason: str,
    broker_url: str | None,
    *,
    refuses: bool = False,
    as_json: bool,
) -> None:
    from batchmill.producer import Client
    from batchmill.producer.store.pause_target import pause_target

    by = f"{_user()}@{socket.gethostname()}"
    with Client(resolve_broker(broker_url)) as client:
        is_new = client.pause(**target, by=by, reason=reason, refuses=refuses)
    kind, name = pause_target(**target)
    if as_json:
        print_json({"kind": kind, "name": name, "is_new": is_new})
    else:
        print(f"{kind} {name} is paused" if is_new else f"{kind} {name} was paused already")


def _end_pause(target: Mapping[str, str], broker_url: str | None, *, as_json: bool) -> None:
    from batchmill.producer import Client
    from batchmill.producer.store.pause_target import pause_target

    with Client(resolve_broker(broker_url)) as client:
        was_paused = client.resume(**target)
    kind, name = pause_target(**target)
    if as_json:
        print_json({"kind": kind, "name": name, "was_paused": was_paused})
    else:
        print(f"{kind} {name} is resumed" if was_paused else f"{kind} {name} was not paused")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for its user
        return "unknown"
