"""`batchmill status`: queues, workers and counts, or the state of one job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from batchmill.worker.terminal import format_time_ms, print_json, print_table

from .attempt_table import print_history
from .broker_connection import (
    missing,
    open_every_shard,
    open_job_stores,
    open_store_of,
    resolve_broker,
)
from .errors import usage_error
from .left_jobs import describe_left_job
from .media_shortage import describe_shortage
from .options import BrokerUrlOption, IntervalOption, JsonOption
from .pauses import pause_of_job
from .status_watch import StatusWatch
from .store_status import StoreStatus

_EPILOG = (
    "Examples:\n\n  batchmill status\n\n  batchmill status --watch\n\n"
    "  batchmill status gen_… --json | jq .state"
)


def add_status_command(app: typer.Typer) -> None:
    """Add `status`."""
    app.command("status", epilog=_EPILOG)(status)


def status(
    job_id: Annotated[
        str | None, typer.Argument(help="Id of a job. Without it, show queues and workers.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show queues and workers until interrupted.")
    ] = False,
    interval_s: IntervalOption = 2.0,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show queues, workers and counts, or the state of one job."""
    if job_id is None and watch:
        _watch_store(broker_url, interval_s, as_json=as_json)
    elif job_id is None:
        _show_store(broker_url, as_json=as_json)
    elif watch:
        raise usage_error(f"--watch shows all jobs: use batchmill progress {job_id} --watch")
    else:
        _show_job(job_id, broker_url, as_json=as_json)


def _show_job(job_id: str, broker_url: str | None, *, as_json: bool) -> None:
    from batchmill.producer import Client

    with Client(resolve_broker(broker_url)) as client:
        job = client.job(job_id).status()
    with open_store_of(broker_url, job_id) as store:
        pause = pause_of_job(store, job_id)
        left = describe_left_job(store, job_id)
    if as_json:
        paused = None if pause is None else asdict(pause)
        print_json(job.model_dump(mode="json") | {"pause": paused, "waits": left})
        return
    rows: list[tuple[str, object]] = [
        ("state", f"{job.state.value}{' (cancelling)' if job.cancelling else ''}"),
        *([("waits", pause.describe())] if pause is not None else []),
        *([("waits", left)] if left is not None else []),
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
    if job.retry_error is not None:
        why = f"{job.retry_error.code}: {job.retry_error.message}"
        rows.append(("tried again", f"{format_time_ms(job.retry_at_ms)}, after {why}"))
    if job.error is not None:
        rows.append(("error", f"{job.error.code}: {job.error.message}"))
    print_table(job.id, ("", ""), rows)
    if job.history:
        print_history(job.history, job.attempts_left_out)


def _show_store(broker_url: str | None, *, as_json: bool) -> None:
    with open_every_shard(broker_url) as shards:
        status = StoreStatus.read(shards)
        if as_json:
            print_json(status.as_json() | missing(shards))
            return
        for parts in status.tables():
            print_table(*parts)
        if not status.workers:
            print("none; start one with `batchmill worker`, or everything with `batchmill up`")
        for model in status.without_decoders:
            print(f"\n{describe_shortage(model)}; jobs with any wait until then")


def _watch_store(broker_url: str | None, interval_s: float, *, as_json: bool) -> None:
    from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S

    with (
        open_job_stores(broker_url, part_limit_s=COMPARE_LIMIT_S) as stores,
        StatusWatch(as_json=as_json) as watch,
    ):
        watch.run(stores, interval_s)
