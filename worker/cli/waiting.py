"""What a command says while it waits for a job: its id, why it waits, and how to go on after."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchmill.producer import EtaUnknown, JobProgress, JobState

#: A line that differs only in its numbers is written again after this long.
_REPEAT_S: Final = 30.0


class WaitNotes:
    """Writes notes about a wait to stderr: as lines, or as lines of JSON."""

    def __init__(self, job_id: str, *, as_json: bool) -> None:
        self._job_id = job_id
        self._as_json = as_json
        self._told: tuple[JobState, EtaUnknown | None] | None = None
        self._told_at = 0.0

    def on_wait(self, progress: JobProgress) -> None:
        """Say how far the job is, if its situation has changed or a while has passed."""
        situation = (progress.state, progress.eta_unknown)
        now = time.monotonic()
        if situation != self._told or now - self._told_at >= _REPEAT_S:
            self._told, self._told_at = situation, now
            self.write(f"note: {progress.describe()}")

    def write(self, text: str) -> None:
        """Write a note."""
        if self._as_json:
            text = json.dumps({"note": {"id": self._job_id, "message": text}})
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextmanager
def wait_notes(job_id: str, *, as_json: bool, is_new: bool = False) -> Iterator[WaitNotes]:
    """Write notes while a job is waited for; after Ctrl-C, say how to go on.

    Args:
        job_id: the job.
        as_json: write lines of JSON.
        is_new: this command has submitted it, so that its id is told first.
    """
    notes = WaitNotes(job_id, as_json=as_json)
    if is_new:
        notes.write(f"submitted {job_id}")
    try:
        yield notes
    except KeyboardInterrupt:
        notes.write(
            f"{job_id} continues: `batchmill result {job_id}` waits for it, "
            f"`batchmill cancel {job_id}` stops it"
        )
        raise
