"""How far a bulk run is, for people: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from batchmill.producer.bulk import BulkCounts

_LINE_INTERVAL_S = 5.0


class BulkView:
    """Writes to stderr, so that stdout is the summary's. Counts its own time."""

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
        """Seconds since it began."""
        return time.monotonic() - self.started_at

    def show(self, counts: BulkCounts) -> None:
        """Show how far the run is."""
        if self._quiet:
            return
        if self._bar is not None:
            self._show_bar(counts)
            return
        now = time.monotonic()
        is_news = counts.done == counts.total and self._shown_done != counts.done
        if now - self._shown_at >= _LINE_INTERVAL_S or is_news:
            self._shown_at, self._shown_done = now, counts.done
            sys.stderr.write(self._line(counts) + "\n")
            sys.stderr.flush()

    def _line(self, counts: BulkCounts) -> str:
        parts = [
            f"{counts.done}/{counts.total} done",
            f"{tokens_per_s(counts, self.elapsed_s):.0f} tok/s",
            f"ETA {_duration(self._eta_s(counts))}",
            f"{counts.failed} failed",
        ]
        return ", ".join(parts)

    def _show_bar(self, counts: BulkCounts) -> None:
        numbers = {
            "rate": f"{tokens_per_s(counts, self.elapsed_s):.0f} tok/s",
            "eta": f"ETA {_duration(self._eta_s(counts))}",
            "failures": f"{counts.failed} failed",
        }
        if self._task is None:
            self._task = self._bar.add_task("bulk", total=counts.total, **numbers)
        self._bar.update(self._task, completed=counts.done, total=counts.total, **numbers)

    def _eta_s(self, counts: BulkCounts) -> float | None:
        """Seconds to go at the pace so far; None where there is no pace yet."""
        answered = counts.completed + counts.failed
        if answered == 0:
            return None if counts.done < counts.total else 0.0
        return (counts.total - counts.done) * self.elapsed_s / answered


def tokens_per_s(counts: BulkCounts, elapsed_s: float) -> float:
    """Return the output tokens a second of this command."""
    return counts.output_tokens / max(elapsed_s, 1e-3)


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
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
