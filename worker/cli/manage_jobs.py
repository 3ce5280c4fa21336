"""`batchmill list`, `cancel`, `retry` and `forget`: commands on jobs that are already stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import missing, open_every_shard, resolve_broker
from .errors import ExitCode, report_error
from .options import (
    BrokerUrlOption,
    JobIds,
    JsonOption,
    ModelFilterOption,
    QueueOption,
    SinceOption,
    StateOption,
    TagOption,
    TenantOption,
    UntilOption,
    check_ids_or_filter,
    job_filter,
)

if TYPE_CHECKING:
    from batchmill.producer import Client, JobStatus
    from batchmill.producer.store.job_index import JobPage

_LIST_EPILOG = (
    "Examples:\n\n  batchmill list --state failed --since 2h\n\n"
    "  batchmill list --model demo --state queued --until 1d\n\n"
    "  batchmill list --tag night-run --limit 20\n\n"
    "  batchmill list --json | jq -r '.jobs[].id'"
)
_CANCEL_EPILOG = (
    "Examples:\n\n  batchmill cancel gen_…\n\n  batchmill cancel --tag night-run\n\n"
    "  batchmill cancel --model gpt-4\n\n"
    "  batchmill cancel --queue batchmill.demo.low --state queued --since 2026-12-01T08:00"
)
_RETRY_EPILOG = (
    "Examples:\n\n  batchmill retry gen_…\n\n"
    "  batchmill list --state failed --json | jq -r '.jobs[].id' | xargs batchmill retry"
)
_FORGET_EPILOG = (
    "Examples:\n\n  batchmill forget gen_…\n\n  batchmill forget --tag customer-4711 --json"
)


def add_manage_job_commands(app: typer.Typer) -> None:
    """Add `list`, `cancel`, `retry` and `forget`."""
    app.command("list", epilog=_LIST_EPILOG)(list_jobs)
    app.command("cancel", epilog=_CANCEL_EPILOG)(cancel_jobs)
    app.command("retry", epilog=_RETRY_EPILOG)(retry_jobs)
    app.command("forget", epilog=_FORGET_EPILOG)(forget_jobs)


def list_jobs(
    tag: TagOption = None,
    tenant: TenantOption = None,
    state: StateOption = None,
    model: ModelFilterOption = None,
    queue: QueueOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of jobs.")] = 100,
    cursor: Annotated[
        str | None,
        typer.Option(help="Continue after a page: the next_cursor of its --json output."),
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first. Prompts and outputs are not shown."""
    from batchmill.producer.client.job_pages import page_of_jobs

    filters = job_filter(tag, tenant, state, model, queue, since, until)
    with open_every_shard(broker_url) as shards:
        page = page_of_jobs(shards, limit=limit, cursor=cursor, **filters)
        if as_json:
            jobs = [job.model_dump(mode="json") for job in page.jobs]
            print_json({"jobs": jobs, "next_cursor": page.next_cursor} | missing(shards))
        else:
            _print_page(page)


def _print_page(page: JobPage) -> None:
    from batchmill.producer.plural import pluralize

    print_table(
        pluralize(len(page.jobs), "job") + (", more to follow" if page.has_more else ""),
        ("id", "state", "model", "tenant", "tags", "tokens", "submitted"),
        (
            (
                job.id,
                _state(job),
                job.model,
                job.tenant,
                ", ".join(job.tags) or "-",
                job.output_tokens,
                format_time_ms(job.enqueued_at_ms),
            )
            for job in page.jobs
        ),
    )
    if page.has_more:
        print(f"for the next page: --cursor {page.next_cursor}")


def cancel_jobs(
    job_ids: JobIds = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    state: Annotated[str | None, typer.Option(help="queued or in_progress.")] = None,
    model: ModelFilterOption = None,
    queue: QueueOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Cancel jobs by id, or all that match the filters. Running ones stop at a checkpoint."""
    from batchmill.producer import Client

    filters = job_filter(tag, tenant, state, model, queue, since, until)
    check_ids_or_filter(job_ids or (), filters)
    with Client(resolve_broker(broker_url)) as client:
        if job_ids:
            return _for_each(job_ids, lambda job_id: _cancel(client, job_id), as_json=as_json)
        counts = client.cancel_where(**filters)
    if as_json:
        print_json(asdict(counts))
    else:
        print(
            f"{counts.cancelled} cancelled, {counts.cancelling} stopping, "
            f"{counts.already_terminal} had already ended"
        )
    return ExitCode.OK


def _state(job: JobStatus) -> str:
    if job.error is not None:
        return f"{job.state.value} ({job.error.code})"
    return f"{job.state.value}{' (cancelling)' if job.cancelling else ''}"


def _cancel(client: Client, job_id: str) -> tuple[dict[str, Any], str]:
    from batchmill.producer import CancelStatus

    reply = client.cancel(job_id)
    state = None if reply.state is None else reply.state.value
    fields = {"id": job_id, "outcome": reply.status.value.lower(), "state": state}
    if reply.status is CancelStatus.ALREADY_TERMINAL:
        return fields, f"{job_id} had already ended: {state}"
    if reply.status is CancelStatus.CANCELLING:
        return fields, f"{job_id} is stopping"
    return fields, f"{job_id} is cancelled"


def retry_jobs(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the jobs.")],
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run failed, cancelled or expired jobs again, under the same ids."""
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:

        def act(job_id: str) -> tuple[dict[str, Any], str]:
            run = client.retry(job_id)
            return {"id": job_id, "run": run}, f"{job_id} is queued again, run {run}"

        return _for_each(job_ids, act, as_json=as_json)


def forget_jobs(
    job_ids: JobIds = None,
    tag: TagOption = None,
    tenant: TenantOption = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Delete everything stored about ended jobs: prompt, output, webhooks and dead letters."""
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:

        def act(job_id: str) -> tuple[dict[str, Any], str]:
            client.forget(job_id)
            return {"id": job_id, "outcome": "forgotten"}, f"{job_id} is forgotten"

        if job_ids:
            check_ids_or_filter(job_ids, job_filter(tag, tenant))
            return _for_each(job_ids, act, as_json=as_json)
        counts = client.forget_where(tag=tag, tenant=tenant)
    if as_json:
        print_json(asdict(counts))
    else:
        kept = f", {counts.active} kept because they have not ended" if counts.active else ""
        print(f"{counts.forgotten} forgotten{kept}")
    return ExitCode.OK


def _for_each(
    job_ids: Sequence[str], act: Callable[[str], tuple[dict[str, Any], str]], *, as_json: bool
) -> int:
    """Apply an action to each job, even if it is refused for another one.

    Args:
        job_ids: the jobs.
        act: the action, which returns its output as JSON and as text.
        as_json: print one line of JSON per job.

    Returns:
        The exit code of the first refusal, or 0.
    """
    from batchmill.producer.errors import JobRejected, UnknownJob, WrongState

    exit_code = ExitCode.OK
    for job_id in dict.fromkeys(job_ids):
        try:
            fields, text = act(job_id)
        except (JobRejected, UnknownJob, WrongState) as error:
            code = report_error(error, as_json=as_json)
            exit_code = exit_code or code
            continue
        if as_json:
            print_json(fields)
        else:
            print(text)
    return exit_code
