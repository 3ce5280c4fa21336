"""The list of jobs: by state, tag, tenant and model, and the way to one by its id."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from batchmill.producer.client.job_pages import page_of_jobs
from batchmill.producer.errors import InvalidQuery
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_index import JobPage

from .visit import ConsoleError, Page, Redirect, Reply, Visit

#: Jobs per page.
PAGE_JOBS: Final = 50
_FILTERS = ("state", "tag", "tenant", "model")


def list_jobs(visit: Visit) -> Reply:
    """Show a page of jobs, newest first; a search for an id leads to what it names."""
    if (searched := visit.given("id")) is not None:
        return _found(visit, searched)
    filters = {name: value for name in _FILTERS if (value := visit.given(name)) is not None}
    own = visit.viewer.tenant
    problem, page = "", JobPage((), None)
    try:
        # A tenant's viewer cannot ask for another one.
        asked = filters | ({} if own is None else {"tenant": own})
        page = page_of_jobs(visit.shards, limit=PAGE_JOBS, cursor=visit.given("cursor"), **asked)  # type: ignore[arg-type]
    except InvalidQuery as error:
        problem = str(error)
    after = None if page.next_cursor is None else filters | {"cursor": page.next_cursor}
    values = {
        "jobs": page.jobs,
        "filters": {name: filters.get(name, "") for name in _FILTERS},
        "states": [state.value for state in JobState],
        "problem": problem,
        "next": None if after is None else urlencode(after),
        "first": urlencode(filters) if visit.given("cursor") else None,
    }
    return Page("jobs.html", values)


def _found(visit: Visit, searched: str) -> Reply:
    """Return the page of an id; its own page says if nothing has it."""
    if searched.startswith("batch_"):
        return Redirect(f"/batches/{quote(searched, safe='')}")
    if searched.startswith("evt_"):
        return Redirect(f"/webhooks/events/{quote(searched, safe='')}")
    if not keys.is_job_id(searched):
        raise ConsoleError(400, f"{searched[:140]!r} is not an id.")
    return Redirect(f"/jobs/{searched}")
