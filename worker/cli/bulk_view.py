"""Progress of a bulk run: a bar in a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from redis import RedisError

from batchmill.worker.terminal import format_duration

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts
    from batchmill.producer.store.job_store import JobStore

_LINE_INTERVAL_S = 5.0
#: Seconds without a result after which the queues are checked.
_STALL_S = 5.0


class BulkView:
    """Writes progress to stderr, so that stdout holds only the summary. Measures its own time."""

    def __init__(self, *, quiet: bool) -> None:
        """Bind to stderr.

        Args:
            quiet: show nothing, only measure.
        """
        self.started_at = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._quiet = quiet
        self._shown_at = 0.0
        self._shown_done = -1

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the view was made."""
        return time.monotonic() - self.started_at

    def show(self, counts: BulkCounts) -> None:
        """Show how far the run is."""
        if self._quiet:
            return
        if self._bar is not None:
            self._show_bar(counts)
            return
        now = time.monotonic()
        is_last = counts.done == counts.total and self._shown_done != counts.done
        if now - self._shown_at >= _LINE_INTERVAL_S or is_last:
            self._shown_at, self._shown_done = now, counts.done
            sys.stderr.write(self._line(counts) + "\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        """Write a line next to the progress, even if the view is quiet."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _line(self, counts: BulkCounts) -> str:
        parts = [
            f"{counts.done}/{counts.total} done",
            _rate(counts, self.elapsed_s),
            f"ETA {_duration(self._eta_s(counts))}",
            f"{counts.failed} failed",
        ]
        return ", ".join(parts)

    def _show_bar(self, counts: BulkCounts) -> None:
        numbers = {
            "rate": _rate(counts, self.elapsed_s),
            "eta": f"ETA {_duration(self._eta_s(counts))}",
            "failures": f"{counts.failed} failed",
        }
        if self._task is None:
            self._task = self._bar.add_task("bulk", total=counts.total, **numbers)
        self._bar.update(self._task, completed=counts.done, total=counts.total, **numbers)

    def _eta_s(self, counts: BulkCounts) -> float | None:
        """Return the seconds to go at the speed so far; None before the first result."""
        ended = counts.completed + counts.failed
        if ended == 0:
            return None if counts.done < counts.total else 0.0
        return (counts.total - counts.done) * self.elapsed_s / ended


def tokens_per_s(counts: BulkCounts, elapsed_s: float) -> float:
    """Return the output tokens per second of this command."""
    return counts.output_tokens / max(elapsed_s, 1e-3)


def _rate(counts: BulkCounts, elapsed_s: float) -> str:
    """Return the tokens per second in words; unknown before the first result."""
    number = f"{tokens_per_s(counts, elapsed_s):.0f}" if counts.output_tokens else "?"
    return f"{number} tok/s"


class StallWatch:
    """Reports once that no worker serves a queue, if jobs wait in it and none ends."""

    def __init__(self, store: JobStore, note: Callable[[str], None]) -> None:
        self._store = store
        self._note = note
        self._done = -1
        self._since = time.monotonic()
        self._has_reported = False

    def observe(self, counts: BulkCounts) -> None:
        """Check the queues if no job has ended for a while."""
        now = time.monotonic()
        if counts.done != self._done:
            self._done, self._since = counts.done, now
        elif not self._has_reported and now - self._since >= _STALL_S:
            self._since = now
            self._report_unserved_queue()

    def _report_unserved_queue(self) -> None:
        with contextlib.suppress(RedisError):  # the run itself reports it
            served = {queue for worker in self._store.list_workers() for queue in worker.queues}
            depths = self._store.queue_depths()
            for name in (depth.queue for depth in depths if depth.queued):
                if name not in served:
                    self._has_reported = True
                    self._note(
                        f"note: no worker serves the queue {name}; start one with that model, or "
                        "stop this command and give another --model"
                    )


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[failures]}"),
        console=Console(stderr=True),
    )


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else format_duration(seconds)
