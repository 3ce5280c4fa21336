"""`batchmill progress`: how far jobs are, and when they will probably be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from .batch_progress import BatchProgressReader
from .broker_connection import open_store_of, resolve_broker
from .errors import usage_error
from .options import (
    BrokerUrlOption,
    IntervalOption,
    JobIds,
    JsonOption,
    TagOption,
    TenantOption,
    WatchOption,
    check_ids_or_filter,
    job_filter,
)

if TYPE_CHECKING:
    from batchmill.producer import Client, JobProgress, ProgressSummary

    from .progress_view import Progress

_EPILOG = (
    "Examples:\n\n  batchmill progress gen_…\n\n  batchmill progress gen_… --watch\n\n"
    "  batchmill progress batch_…\n\n  batchmill progress --tag night-run --watch\n\n"
    "  batchmill progress --tag night-run --json | jq .eta_s"
)


def add_progress_command(app: typer.Typer) -> None:
    """Add `progress`."""
    app.command("progress", epilog=_EPILOG)(progress)


def progress(
    job_ids: JobIds = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    watch: WatchOption = False,
    interval_s: IntervalOption = 1.0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far one job or batch is, or many jobs together: tokens, speed and time left."""
    from batchmill.producer import Client

    from .progress_view import follow_progress, show_progress

    check_ids_or_filter(job_ids or (), job_filter(tag, tenant))
    with ExitStack() as stack:
        client = stack.enter_context(Client(resolve_broker(broker_url)))
        read_progress: Callable[[], Progress]
        if batch_id := _batch_id(job_ids or ()):
            store = stack.enter_context(open_store_of(broker_url, batch_id))
            read_progress = BatchProgressReader(client, store, batch_id).read
        else:
            read_progress = _progress_reader(client, _selected_ids(client, job_ids, tag, tenant))
        if watch:
            follow_progress(read_progress, interval_s, as_json=as_json)
        else:
            show_progress(read_progress(), as_json=as_json)


def _batch_id(ids: Sequence[str]) -> str | None:
    """Return the id of the batch that is asked for; None if jobs are.

    Raises:
        CommandError: a batch is named beside other ids.
    """
    named = [each for each in ids if each.startswith("batch_")]
    if named and len(ids) > 1:
        raise usage_error(f"{named[0]} is a batch: give its id alone")
    return named[0] if named else None


def _selected_ids(
    client: Client, job_ids: Sequence[str] | None, tag: str | None, tenant: str | None
) -> list[str]:
    """Return the ids of the chosen jobs. Jobs that get the tag later are not among them."""
    if job_ids:
        return list(dict.fromkeys(job_ids))
    if tag is None and tenant is None:
        raise usage_error("no jobs are chosen: give ids, --tag or --tenant")
    return [job.id for job in client.iter_jobs(tag=tag, tenant=tenant)]


def _progress_reader(
    client: Client, job_ids: Sequence[str]
) -> Callable[[], JobProgress | ProgressSummary]:
    """Return a function that reads the progress: of one job in detail, of several as a sum."""
    if len(job_ids) == 1:
        return lambda: client.progress(job_ids[0])
    return lambda: client.progress_many(job_ids)
