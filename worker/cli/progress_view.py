"""How far jobs are, in words: one line in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from batchmill.producer.counted import counted
from batchmill.worker.terminal import print_json

if TYPE_CHECKING:
    from batchmill.producer import JobProgress, ProgressSummary

_REASONS = {
    "no_worker": "no worker serves it",
    "no_speed": "no worker has generated anything in the last seconds",
    "scheduled": "it waits for the end of its delay",
    "no_length": "how long it may get is not known",
}


class ProgressView:
    """Writes to stdout. Remembers what it showed last."""

    def __init__(self, *, in_place: bool, as_json: bool) -> None:
        """Bind to stdout.

        Args:
            in_place: in a terminal, show changes in one line.
            as_json: a line of JSON for each change instead.
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
        """Show how far they are, where that is news."""
        if self._status is not None and not has_ended(found):
            self._status.update(line(found))
        elif found != self._shown:
            self._shown = found
            if self._as_json:
                print_json(found.model_dump(mode="json"))
            else:
                print(line(found), flush=True)


def has_ended(found: JobProgress | ProgressSummary) -> bool:
    """Whether there is nothing to wait for any more."""
    from batchmill.producer import JobProgress

    if isinstance(found, JobProgress):
        return found.state.is_terminal
    return found.done + found.unknown == found.total


def line(found: JobProgress | ProgressSummary) -> str:
    """Return how far a job, or many, are, in words."""
    from batchmill.producer import JobProgress

    parts = _job_parts(found) if isinstance(found, JobProgress) else _summary_parts(found)
    if not has_ended(found):
        parts.append(_eta(found))
    return ", ".join(parts)


def _job_parts(job: JobProgress) -> list[str]:
    most = "?" if job.max_tokens is None else str(job.max_tokens)
    parts = [f"{job.id} {job.state.value}", f"{job.output_tokens} of at most {most} tokens"]
    if job.queue_position is not None:
        parts.append(f"{counted(job.queue_position, 'job')} before it")
    if job.tokens_per_s:  # 0.0 is that no worker has told yet
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
    parts.append(counted(summary.output_tokens, "token"))
    if summary.tokens_per_s:
        parts.append(f"{summary.tokens_per_s:.1f} tok/s")
    return parts


def _eta(found: JobProgress | ProgressSummary) -> str:
    if found.eta_s is not None:
        minutes, seconds = divmod(round(found.eta_s), 60)
        hours, minutes = divmod(minutes, 60)
        return f"ETA {hours}:{minutes:02}:{seconds:02} at most"
    return f"no ETA: {_REASONS[found.eta_unknown.value] if found.eta_unknown else 'not known'}"
