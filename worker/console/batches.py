"""Batches: progress, estimated end, cost, results and cancelling."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchmill.producer.bulk.result_lines import ended_line
from batchmill.producer.bulk.settings import Price
from batchmill.producer.bulk.usage import Tokens, amount_of
from batchmill.producer.job.batch import BatchState, BatchStatus, read_batch
from batchmill.producer.job.line import LineKind
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.store.batches import (
    BatchEntry,
    Position,
    batch_entries,
    batch_page,
    batch_positions,
)
from batchmill.producer.store.deliveries import Deliveries
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE
from batchmill.producer.store.job_status import job_statuses
from batchmill.producer.store.job_store import JobStore

from .fleet import share
from .viewer import Viewer
from .visit import Download, Page, Redirect, Reply, Visit, not_found, require

#: Batches per page; as many are looked at together to find those of one tenant.
PAGE_BATCHES: Final = 25
_SCAN = 200
#: Jobs per page of a batch.
_PAGE_JOBS = 50


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch with what the pages show of it."""

    status: BatchStatus
    #: None while no line has said it, and if its lines belong to others: only operators see it.
    tenant: str | None
    #: The one model of its lines, if they name only one.
    model: str | None

    @property
    def done(self) -> int:
        """Lines that have ended."""
        return self.status.request_counts.completed + self.status.request_counts.failed

    @property
    def progress(self) -> float | None:
        """Share of the lines that have ended."""
        return share(self.done, self.status.request_counts.total)

    @property
    def eta_s(self) -> float | None:
        """Seconds until it ends if it goes on as it has since its start; None if unknown."""
        begun, counts = self.status.created_at, self.status.request_counts
        if self.status.status.is_terminal or not self.done or not counts.total:
            return None
        per_line_s = max(1.0, time.time() - begun) / self.done
        return per_line_s * (counts.total - self.done)

    @property
    def took_s(self) -> float | None:
        """Seconds from its creation to its end; None while it runs."""
        status = self.status
        ends = (status.completed_at, status.failed_at, status.expired_at, status.cancelled_at)
        ended_at = next((at for at in ends if at is not None), None)
        return None if ended_at is None else float(ended_at - status.created_at)

    def cost(self, prices: dict[str, Price]) -> str | None:
        """Return what its ended jobs cost; None without a price."""
        price = prices.get(self.model or "", prices.get("*"))
        if price is None:
            return None
        amount = amount_of(price, Tokens.of_batch(self.status.usage))
        return f"{amount:,.4f} {price.currency}".strip()


def list_batches(visit: Visit) -> Reply:
    """Show a page of batches, newest first."""
    after = visit.given("after")
    found = _page(visit, after)
    shown = found[:PAGE_BATCHES]
    values = {
        "batches": [(batch, batch.cost(visit.site.prices)) for batch in shown],
        "next": shown[-1].status.id if len(found) > PAGE_BATCHES else None,
        "is_first": after is None,
    }
    return Page("batches.html", values)


def show_batch(visit: Visit) -> Reply:
    """Show a batch and its jobs."""
    batch = _batch(visit)
    store = visit.site.stores.of_batch(batch.status.id)
    given = visit.query.get("after", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) < 10 else -1
    rows = store.read(batch_page(batch.status.id, after))[: _PAGE_JOBS + 1]
    shown = rows[:_PAGE_JOBS]
    statuses = store.read(job_statuses([job_id for _, job_id in shown]))
    jobs = [(*row, status) for row, status in zip(shown, statuses, strict=True)]
    values = {
        "batch": batch,
        "cost": batch.cost(visit.site.prices),
        "jobs": jobs,
        "events": Deliveries(store).of_job(batch.status.id),
        "next": jobs[-1][0] if len(rows) > _PAGE_JOBS else None,
        "is_first": after < 0,
        "may_cancel": visit.viewer.may_change_jobs
        and not batch.status.status.is_terminal
        and batch.status.status is not BatchState.CANCELLING,
    }
    return Page("batch.html", values)


def cancel_batch(visit: Visit) -> Reply:
    """Cancel all jobs of a batch that have not ended."""
    require(visit.viewer.may_change_jobs, "submit")
    batch = _batch(visit)
    visit.site.client.cancel_batch(batch.status.id)
    return Redirect(f"/batches/{batch.status.id}", "batch-cancelled")


def download_results(visit: Visit) -> Reply:
    """Return the results of the jobs that have ended, as lines of JSON in the batch's order."""
    require(visit.viewer.sees_texts, "texts")
    batch = _batch(visit)
    name = f"{batch.status.id}.jsonl"
    lines = _result_lines(visit.site.stores.of_batch(batch.status.id), batch.status.id)
    return Download(name, "application/x-jsonl", lines)


def _result_lines(store: JobStore, batch_id: str) -> Iterator[bytes]:
    after = -1
    while page := store.read(batch_page(batch_id, after)):
        for start in range(0, len(page), MAX_ENDS_AT_ONCE):
            entries = store.read(batch_entries(page[start : start + MAX_ENDS_AT_ONCE]))
            ended = [each for each in entries if each.job.state and each.job.state.is_terminal]
            yield b"".join(map(_line, ended))
        after = page[-1][0]


def _line(entry: BatchEntry) -> bytes:
    kind = LineKind(entry.endpoint or LineKind.CHAT)
    line = ended_line(f"batch_req_{entry.job.id}", entry.custom_id, kind, entry.job)
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _batch(visit: Visit) -> Batch:
    """Return the batch of a path.

    Raises:
        ConsoleError: there is none, or it belongs to another tenant.
    """
    batch_id = visit.path["batch_id"]
    store = visit.site.stores.of_batch(batch_id[:200])
    (batch,) = store.read(_batches([batch_id[:200]]))
    if batch is None or not visit.viewer.sees(batch.tenant):
        raise not_found("batch", batch_id)
    return batch


def _page(visit: Visit, after: str | None) -> list[Batch]:
    """Return the batches of a page that the viewer sees, and one more if there is one."""
    start: Position | None = None
    if after is not None:
        store = visit.site.stores.of_batch(after[:200])
        at_ms: Any = store.client.zscore(keys.BATCHES, after[:200])
        start = None if at_ms is None else (float(at_ms), after[:200])
    parts = visit.shards.each(lambda store: _page_of(store, visit.viewer, start))
    found = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
    return [batch for _, batch in found[: -PAGE_BATCHES - 2 : -1]]


def _page_of(
    store: JobStore, viewer: Viewer, before: Position | None
) -> list[tuple[Position, Batch]]:
    """Return the newest batches of one shard that the viewer sees, with their positions."""
    found, num_seen = list[tuple[Position, Batch]](), 0
    while len(found) <= PAGE_BATCHES:
        page = store.read(batch_positions(before, num_seen, _SCAN))
        if not page:
            break
        batches = store.read(_batches([batch_id for _, batch_id in page]))
        found += [
            (position, batch)
            for position, batch in zip(page, batches, strict=True)
            if batch and viewer.sees(batch.tenant) and (before is None or position < before)
        ]
        num_seen += len(page)
    return found


def _batches(batch_ids: Sequence[str]) -> Read[list[Batch | None]]:
    def queue(pipeline: Any) -> None:
        for batch_id in batch_ids:
            pipeline.hgetall(keys.batch(batch_id))
            pipeline.zcard(keys.batch_jobs(batch_id))

    def parse(replies: list[Any]) -> list[Batch | None]:
        return list(map(_readable, replies[::2], replies[1::2]))

    return Read(queue, parse, is_atomic=True, keeps_errors=True)


def _readable(fields: Any, num_jobs: Any) -> Batch | None:
    """Return a batch; None if it does not exist, or batchmill did not write it."""
    try:
        known = stored(fields, default={})
        status = read_batch(known, stored(num_jobs, default=0))
        names = (b"tenant", b"line_tenant", b"model")
        texts = {name: known[name].decode() for name in names if name in known}
    except (KeyError, TypeError, ValueError):
        return None
    if status is None:
        return None
    # A line may name another tenant than its batch; `line_tenant` is empty if there are several.
    tenants = {texts[name] for name in (b"tenant", b"line_tenant") if name in texts}
    tenant = tenants.pop() if len(tenants) == 1 else None
    return Batch(status, tenant or None, texts.get(b"model"))
