"""Progress of jobs in words: one changing line in a terminal, otherwise one line per change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from batchmill.worker.terminal import print_json

if TYPE_CHECKING:
    from batchmill.producer import JobProgress, ProgressSummary

    from .batch_progress import BatchProgress

    Progress: TypeAlias = JobProgress | ProgressSummary | BatchProgress


class ProgressView:
    """Writes progress to stdout if it differs from what was shown last."""

    def __init__(self, *, in_place: bool, as_json: bool) -> None:
        """Bind to stdout.

        Args:
            in_place: update a single line if stdout is a terminal.
            as_json: write one line of JSON per change instead.
        """
        self._as_json = as_json
        self._in_place = in_place and not as_json and sys.stdout.isatty()
        self._status: Any = None
        self._shown: object = None

    def __enter__(self) -> Self:
        if self._in_place:
            from rich.console import Console

            self._status = Console().status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, found: Progress) -> None:
        """Show the progress if it has changed."""
        if self._status is not None and not has_ended(found):
            self._status.update(progress_line(found))
        elif found != self._shown:
            self._shown = found
            if self._as_json:
                print_json(found.model_dump(mode="json"))
            else:
                print(progress_line(found), flush=True)


def follow_progress(read: Callable[[], Progress], interval_s: float, *, as_json: bool) -> None:
    """Read and show progress at an interval, until nothing is left to wait for."""
    with ProgressView(in_place=True, as_json=as_json) as view:
        found = read()
        view.show(found)
        while not has_ended(found):
            time.sleep(interval_s)
            found = read()
            view.show(found)


def show_progress(found: Progress, *, as_json: bool) -> None:
    """Show progress once."""
    with ProgressView(in_place=False, as_json=as_json) as view:
        view.show(found)


def has_ended(found: Progress) -> bool:
    """Return whether nothing is left to wait for."""
    from batchmill.producer import JobProgress

    return found.state.is_terminal if isinstance(found, JobProgress) else found.has_ended


def progress_line(found: Progress) -> str:
    """Return the progress of one job, of many or of a batch in words."""
    return found.describe()
