"""Parsing of messages on jobs' channels, and the jobs that are still waited for. No I/O."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

_CHANNEL_PREFIX = len(keys.channel(""))


def is_progress(message: Mapping[str, Any] | None) -> bool:
    """Return whether a message only reports more tokens: no reason to read the state."""
    if message is None or message["type"] != "message":
        return False
    return bytes(message["data"]).startswith(b'{"tokens"')


class Watched:
    """The jobs that are waited for, and those of them that are known to have ended.

    Invariant: an id is pending or ended, and leaves for good with `take_ended`.
    """

    def __init__(self) -> None:
        #: In the order in which they were added, which is roughly the order in which they end.
        self.pending: dict[str, None] = {}
        #: Pending jobs without a confirmed subscription on this connection.
        self.unsubscribed: dict[str, None] = {}
        self._ended: list[str] = []

    def add(self, job_ids: Iterable[str]) -> None:
        """Begin to wait for jobs."""
        for job_id in job_ids:
            self.pending[job_id] = None
            self.unsubscribed[job_id] = None

    def note_message(self, message: Mapping[str, Any] | None) -> str | None:
        """Note a message; return the id whose subscription it confirms, or None."""
        if message is None:
            return None
        job_id = message["channel"].decode()[_CHANNEL_PREFIX:]
        if message["type"] == "subscribe":
            return str(job_id)
        if message["type"] == "message" and message["data"].startswith(b'{"state"'):
            # Anyone may publish. What cannot be read says nothing; the record is looked at anyway.
            with contextlib.suppress(ValueError, RecursionError):
                self.note_state(job_id, JobState(json.loads(message["data"])["state"]))
        return None

    def note_state(self, job_id: str, state: JobState | None) -> None:
        """Note a job's state. None means that its record is gone, which also ends the wait."""
        if job_id in self.pending and (state is None or state.is_terminal):
            del self.pending[job_id]
            self.unsubscribed.pop(job_id, None)
            self._ended.append(job_id)

    def take_ended(self) -> list[str]:
        """Return the jobs that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def has_ended(self) -> bool:
        """Whether `take_ended` has something to return."""
        return bool(self._ended)

    def lose_connection(self) -> None:
        """Note that every subscription is gone."""
        self.unsubscribed = dict(self.pending)
