"""Progress of jobs in words: one changing line in a terminal, otherwise one line per change."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from batchmill.producer.plural import pluralize
from batchmill.worker.terminal import format_duration, print_json

if TYPE_CHECKING:
    from batchmill.producer import JobProgress, ProgressSummary

_REASONS = {
    "no_worker": "no worker serves it",
    "no_speed": "no worker has generated tokens in the last seconds",
    "scheduled": "its delay is not over",
    "no_length": "its maximum length is unknown",
}


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

    def show(self, found: JobProgress | ProgressSummary) -> None:
        """Show the progress if it has changed."""
        if self._status is not None and not has_ended(found):
            self._status.update(progress_line(found))
        elif found != self._shown:
            self._shown = found
            if self._as_json:
                print_json(found.model_dump(mode="json"))
            else:
                print(progress_line(found), flush=True)


def has_ended(found: JobProgress | ProgressSummary) -> bool:
    """Return whether nothing is left to wait for."""
    from batchmill.producer import JobProgress

    if isinstance(found, JobProgress):
        return found.state.is_terminal
    return found.done + found.unknown == found.total


def progress_line(found: JobProgress | ProgressSummary) -> str:
    """Return the progress of one job or of many in words."""
    from batchmill.producer import JobProgress

    parts = _job_parts(found) if isinstance(found, JobProgress) else _summary_parts(found)
    if not has_ended(found):
        parts.append(_eta(found))
    return ", ".join(parts)


def _job_parts(job: JobProgress) -> list[str]:
    most = "?" if job.max_tokens is None else str(job.max_tokens)
    parts = [f"{job.id} {job.state.value}", f"{job.output_tokens} of at most {most} tokens"]
    if job.queue_position is not None:
        parts.append(f"{pluralize(job.queue_position, 'job')} before it")
    if job.tokens_per_s:  # 0.0 if no worker has reported yet
        parts.append(f"{job.tokens_per_s:.1f} tok/s")
    return parts


def _summary_parts(summary: ProgressSummary) -> list[str]:
    ends = [
        f"{number} {state.value}"
        for state, number in sorted(summary.states.items())
        if state.value != "queued" and number
    ]
    if summary.unknown:
        ends.append(f"{summary.unknown} unknown")
    parts = [f"{summary.done} of {summary.total} done", *ends]
    parts.append(pluralize(summary.output_tokens, "token"))
    if summary.tokens_per_s:
        parts.append(f"{summary.tokens_per_s:.1f} tok/s")
    return parts


def _eta(found: JobProgress | ProgressSummary) -> str:
    if found.eta_s is not None:
        return f"ETA {format_duration(found.eta_s)} at most"
    return f"no ETA: {_REASONS[found.eta_unknown.value] if found.eta_unknown else 'unknown'}"
