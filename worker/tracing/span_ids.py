"""Ids of spans that any worker can compute, so that one can write the span of another's attempt.

A worker that is killed exports no span of the attempt that it made. The next worker reads in the
record that the attempt was lost, and writes its span, under the id that the spans of its parts,
which may have been exported before, name as their parent.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

_SPAN_BYTES, _TRACE_BYTES = 8, 16


class ChosenIds(RandomIdGenerator):
    """Random ids, except in a block that chooses them."""

    def __init__(self) -> None:
        self._thread = threading.local()

    @contextmanager
    def choose(self, trace_id: int, span_id: int) -> Iterator[None]:
        """Give the next span these ids, in this thread; a parent's trace counts more."""
        self._thread.ids = trace_id, span_id
        try:
            yield
        finally:
            self._thread.ids = None

    def generate_trace_id(self) -> int:
        """Return the chosen id of a trace, or a random one."""
        chosen = self._chosen()
        return int(super().generate_trace_id()) if chosen is None else chosen[0]

    def generate_span_id(self) -> int:
        """Return the chosen id of a span, or a random one."""
        chosen = self._chosen()
        return int(super().generate_span_id()) if chosen is None else chosen[1]

    def _chosen(self) -> tuple[int, int] | None:
        chosen: tuple[int, int] | None = getattr(self._thread, "ids", None)
        return chosen


def trace_id_of_job(job_id: str, enqueued_at_ms: int) -> int:
    """Return the trace of a job that came without one: the same for all its attempts."""
    return _digest(f"{job_id}\0{enqueued_at_ms}", _TRACE_BYTES)


def span_id_of_attempt(trace_id: int, job_id: str, attempt: int, made_at_ms: int) -> int:
    """Return the id of an attempt's span.

    Args:
        trace_id: of the job.
        job_id: the job.
        attempt: number of the claim.
        made_at_ms: when it was made, on Redis' clock: after a failover numbers may come again.
    """
    return _digest(f"{trace_id:032x}\0{job_id}\0{attempt}\0{made_at_ms}", _SPAN_BYTES)


def _digest(text: str, num_bytes: int) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:num_bytes]) or 1  # 0 is the invalid id
