"""Pages of jobs of all shards that reply."""

from __future__ import annotations

from typing import Unpack

from batchmill.producer.store.every_shard import EveryShard
from batchmill.producer.store.job_index import JobFilter, JobPage, JobQuery, merged_page

from .job_verbs import page_of


def page_of_jobs(
    shards: EveryShard, *, limit: int, cursor: str | None = None, **filters: Unpack[JobFilter]
) -> JobPage:
    """Return a page of jobs, as `Client.list` does; a shard that does not reply is left out.

    Raises:
        InvalidQuery: a value is invalid.
    """
    query = JobQuery.checked(**filters, cursor=cursor)
    pages = shards.each(lambda store: page_of(store, query, limit))
    return merged_page(pages, limit)
