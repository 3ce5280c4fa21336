"""Numbers of jobs, messages, events and documents: in the whole store, and per queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The jobs and messages of one queue."""

    queue: str
    #: Jobs that wait, delayed ones included.
    queued: int
    #: Messages that announce jobs: a small window of the waiting jobs, never all of them.
    announcements: int


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """The numbers of the whole store."""

    queued: int
    #: Of the queued jobs, those whose delay is not over.
    scheduled: int
    in_progress: int
    #: Webhook events that wait for delivery.
    outbox: int
    dead_letters: int
    #: Documents in the inbox that are not jobs yet.
    inbox: int
    #: Totals since the store was created, which only grow: `submitted`, each terminal state,
    #: `webhook_delivered` …
    totals: Mapping[str, int]
