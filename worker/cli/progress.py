"""`batchmill progress`: how far jobs are and when they are likely to be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .broker_connection import resolve_broker
from .errors import usage_error
from .options import (
    BrokerUrlOption,
    JobIds,
    JsonOption,
    TagOption,
    TenantOption,
    check_ids_or_filter,
)

if TYPE_CHECKING:
    from batchmill.producer import Client, JobProgress, ProgressSummary

_EPILOG = (
    "Examples:\n\n  batchmill progress gen_…\n\n  batchmill progress gen_… --watch\n\n"
    "  batchmill progress --tag night-run --watch\n\n"
    "  batchmill progress --tag night-run --json | jq .eta_s"
)


def add_progress_command(app: typer.Typer) -> None:
    """Add the command."""
    app.command("progress", epilog=_EPILOG)(progress)


def progress(
    job_ids: JobIds = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until all have ended, a line for each change.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")
    ] = 1.0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far one job is, or many together: tokens, speed, and seconds to go (estimated)."""
    from batchmill.producer import Client

    from .progress_view import ProgressView, has_ended

    check_ids_or_filter(job_ids or (), tag, tenant)
    with Client(resolve_broker(broker_url)) as client:
        look = _look(client, _ids(client, job_ids, tag, tenant))
        with ProgressView(in_place=watch, as_json=as_json) as view:
            found = look()
            view.show(found)
            while watch and not has_ended(found):
                time.sleep(interval_s)
                found = look()
                view.show(found)


def _ids(
    client: Client, job_ids: Sequence[str] | None, tag: str | None, tenant: str | None
) -> list[str]:
    """The jobs that are meant: those that a tag has now, not those that get it later."""
    if job_ids:
        return list(dict.fromkeys(job_ids))
    if tag is None and tenant is None:
        raise usage_error("no jobs: give ids, --tag or --tenant")
    return [job.id for job in client.iter_jobs(tag=tag, tenant=tenant)]


def _look(client: Client, job_ids: Sequence[str]) -> Callable[[], JobProgress | ProgressSummary]:
    """What tells how far they are: one job in detail, several as a sum."""
    if len(job_ids) == 1:
        return lambda: client.progress(job_ids[0])
    return lambda: client.progress_many(job_ids)
