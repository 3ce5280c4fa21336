"""Progress of a bulk run: a bar in a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from batchmill.worker.terminal import format_duration

from .bulk_summary import tokens_per_s

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts

_LINE_INTERVAL_S = 5.0


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
        #: What the run waits for in place of an ETA; None if it proceeds.
        self.waits_for: str | None = None

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
            self._eta(counts),
            f"{counts.failed} failed",
        ]
        return ", ".join(parts)

    def _show_bar(self, counts: BulkCounts) -> None:
        numbers = {
            "rate": _rate(counts, self.elapsed_s),
            "eta": self._eta(counts),
            "failures": f"{counts.failed} failed",
        }
        if self._task is None:
            self._task = self._bar.add_task("bulk", total=counts.total, **numbers)
        self._bar.update(self._task, completed=counts.done, total=counts.total, **numbers)

    def _eta(self, counts: BulkCounts) -> str:
        return self.waits_for or f"ETA {_duration(self._eta_s(counts))}"

    def _eta_s(self, counts: BulkCounts) -> float | None:
        """Return the seconds to go at the speed so far; None before the first result."""
        ended = counts.completed + counts.failed
        if ended == 0:
            return None if counts.done < counts.total else 0.0
        return (counts.total - counts.done) * self.elapsed_s / ended


def _rate(counts: BulkCounts, elapsed_s: float) -> str:
    """Return the tokens per second in words; unknown before the first result."""
    number = f"{tokens_per_s(counts, elapsed_s):.0f}" if counts.output_tokens else "?"
    return f"{number} tok/s"


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
