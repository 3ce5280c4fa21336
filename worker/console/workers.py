"""The workers: what each serves, its state and its load."""

from __future__ import annotations

from batchmill.producer.store.job_store import JobStore

from .fleet import Load
from .visit import Page, Reply, Visit, require


def show_workers(visit: Visit) -> Reply:
    """Show all workers that are alive."""
    require(visit.viewer.is_operator, "operator")
    parts = visit.shards.each(JobStore.list_workers)
    loads = [Load.of(worker) for workers in parts for worker in workers]
    return Page("workers.html", {"loads": loads})
