"""The workers: what each serves, its state and its load."""

from __future__ import annotations

from .fleet import Load
from .visit import Page, Reply, Visit, require


def show_workers(visit: Visit) -> Reply:
    """Show all workers that are alive."""
    require(visit.viewer.is_operator, "operator")
    loads = [Load.of(worker) for worker in visit.site.store.list_workers()]
    return Page("workers.html", {"loads": loads})
