"""`batchmill status`: queues, workers and counts, or the state of one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .broker_connection import open_store, resolve_broker
from .options import BrokerUrlOption, JsonOption

if TYPE_CHECKING:
    from batchmill.producer.protocol.records import WorkerInfo

_EPILOG = "Examples:\n\n  batchmill status\n\n  batchmill status gen_… --json | jq .state"


def add_status_command(app: typer.Typer) -> None:
    """Add `status`."""
    app.command("status", epilog=_EPILOG)(status)


def status(
    job_id: Annotated[
        str | None, typer.Argument(help="Id of a job. Without it, show queues and workers.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show queues, workers and counts, or the state of one job."""
    if job_id is None:
        _show_store(broker_url, as_json=as_json)
    else:
        _show_job(job_id, broker_url, as_json=as_json)


def _show_job(job_id: str, broker_url: str | None, *, as_json: bool) -> None:
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:
        job = client.job(job_id).status()
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    rows: list[tuple[str, object]] = [
        ("state", f"{job.state.value}{' (cancelling)' if job.cancelling else ''}"),
        ("model", job.model),
        ("tenant", job.tenant),
        ("output tokens", job.output_tokens),
        ("attempts", job.attempts if job.run == 1 else f"{job.attempts}, in {job.run} runs"),
        ("tags", ", ".join(job.tags) or "-"),
        ("worker", job.worker or "-"),
        ("enqueued", format_time_ms(job.enqueued_at_ms)),
        ("not before", format_time_ms(job.scheduled_at_ms)),
        ("started", format_time_ms(job.started_at_ms)),
        ("finished", format_time_ms(job.finished_at_ms)),
        ("deadline", format_time_ms(job.deadline_at_ms)),
    ]
    if job.error is not None:
        rows.append(("error", f"{job.error.code}: {job.error.message}"))
    print_table(job.id, ("", ""), rows)


def _show_store(broker_url: str | None, *, as_json: bool) -> None:
    with open_store(broker_url) as store:
        counts, queues, workers = store.counts(), store.queue_depths(), store.list_workers()
    served = {queue for worker in workers for queue in worker.queues}
    if as_json:
        print_json(
            {
                "counts": asdict(counts),
                "queues": [asdict(depth) | {"served": depth.queue in served} for depth in queues],
                "workers": [asdict(worker) for worker in workers],
            }
        )
        return
    print_table("Jobs", ("", "number"), _count_rows(counts))
    print_table(
        "\nQueues",
        ("queue", "waiting", "announced", "served"),
        (
            (d.queue, d.queued, d.announcements, "yes" if d.queue in served else "by no worker")
            for d in queues
        ),
    )
    _print_workers(workers)


def _print_workers(workers: Sequence[WorkerInfo]) -> None:
    columns = ["worker", "model", "state", "since", "in flight"]
    rows: list[list[object]] = [
        [w.name, w.model, w.state, format_time_ms(w.started_at_ms), w.stats.get("jobs", "-")]
        for w in workers
    ]
    drafts = [_drafts(worker) for worker in workers]
    if any(drafts):  # prompt lookup is off by default
        columns.append("prompt lookup")
        rows = [[*row, cell or "-"] for row, cell in zip(rows, drafts, strict=True)]
    print_table("\nWorkers", columns, rows)
    if not workers:
        print("none; start one with `batchmill worker`, or everything with `batchmill up`")


def _drafts(worker: WorkerInfo) -> str | None:
    """Return the draft tokens since the engine process started; None without prompt lookup."""
    num_drafts = worker.stats.get("draft_tokens")
    num_accepted = worker.stats.get("accepted_tokens")
    if not isinstance(num_drafts, int) or not isinstance(num_accepted, int):
        return None
    if num_drafts == 0:
        return "drafts 0"
    return f"drafts {num_drafts:,}, accepted {num_accepted / num_drafts:.0%}".replace("%", " %")


def _count_rows(counts: Any) -> list[tuple[str, int]]:
    rows = [
        ("in the inbox", counts.inbox),
        ("waiting", counts.queued),
        ("of these, delayed", counts.scheduled),
        ("in progress", counts.in_progress),
        ("webhooks waiting", counts.outbox),
        ("dead letters", counts.dead_letters),
    ]
    rows += [(f"total {name}", number) for name, number in sorted(counts.totals.items())]
    return rows
