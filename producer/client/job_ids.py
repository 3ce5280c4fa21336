"""Ids of jobs that callers name by handle or id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class HasId(Protocol):
    """A job's handle."""

    @property
    def id(self) -> str:
        """Id of the job."""


def ids_of(jobs: Iterable[HasId | str]) -> list[str]:
    """Return the ids of handles or ids, each once."""
    return list(dict.fromkeys(job if isinstance(job, str) else job.id for job in jobs))
