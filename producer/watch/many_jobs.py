"""Watching any number of jobs for their ends, over one connection.

Each job's channel is subscribed to; a look at every record now and then is the safety net for a
message that was lost while the connection was cut.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from redis.client import PubSub
from redis.exceptions import TimeoutError as RedisTimeoutError

from batchmill.producer.counted import counted
from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.read_ends import chunks

from .one_job import CONNECTION_ERRORS, OUTAGE_LIMIT_S, POLL_INTERVAL_S

#: Channels in one SUBSCRIBE, and records looked at in one round trip.
MAX_AT_ONCE = 500
#: Time for the broker to confirm a subscription.
CONFIRM_LIMIT_S = 10.0
_RECONNECT_PAUSE_S = 0.1
_CHANNEL_PREFIX = len(keys.channel(""))


class Watched:
    """Which jobs are waited for, and which of them are known to have ended. No input or output.

    Invariant: an id is pending or ended, and leaves for good with `take_ended`.
    """

    def __init__(self) -> None:
        #: In the order in which they were added, which is about the order in which they end.
        self.pending: dict[str, None] = {}
        #: Pending, and no subscription has been confirmed for them on this connection.
        self.unsubscribed: dict[str, None] = {}
        self._ended: list[str] = []

    def add(self, job_ids: Iterable[str]) -> None:
        """Begin to wait for jobs."""
        for job_id in job_ids:
            self.pending[job_id] = None
            self.unsubscribed[job_id] = None

    def note(self, message: Mapping[str, Any] | None) -> str | None:
        """Take in a message; returns the id whose subscription it confirms, or None."""
        if message is None:
            return None
        job_id = message["channel"].decode()[_CHANNEL_PREFIX:]
        if message["type"] == "subscribe":
            return str(job_id)
        if message["type"] == "message" and message["data"].startswith(b'{"state"'):
            self.note_state(job_id, JobState(json.loads(message["data"])["state"]))
        return None

    def note_state(self, job_id: str, state: JobState | None) -> None:
        """Take in a job's state; None is a record that is gone, which ends the wait as well."""
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
        """Every subscription is gone."""
        self.unsubscribed = dict(self.pending)


class Outage:
    """How long the broker has been away."""

    def __init__(self) -> None:
        self._since: float | None = None

    def over(self) -> None:
        """It answers."""
        self._since = None

    def check(self, error: Exception) -> float:
        """Return the seconds to wait before connecting again.

        Raises:
            Exception: `error`, where the broker has been away for `OUTAGE_LIMIT_S`.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > OUTAGE_LIMIT_S:
            raise error
        return _RECONNECT_PAUSE_S


class TimeBudget:
    """How long a caller waits for a number of jobs."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._has_looked = False

    def next_wait_s(self, num_pending: int) -> float:
        """Return the seconds to wait at most; the first look is always granted.

        Raises:
            ResultTimeout: the time is over.
        """
        if self._deadline is None:
            return POLL_INTERVAL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 and self._has_looked:
            raise ResultTimeout(
                f"{counted(num_pending, 'job')} not ended after {self._timeout_s} s; nothing was "
                "stopped: wait again, or cancel"
            )
        self._has_looked = True
        return min(POLL_INTERVAL_S, max(0.0, left_s))


class EndWatch:
    """Owns one connection, and tells of each job once. Not for several threads."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._watched = Watched()
        self._outage = Outage()
        self._pubsub: PubSub | None = None
        self._looked_at = time.monotonic()

    def __len__(self) -> int:
        """Jobs that are waited for."""
        return len(self._watched.pending)

    def add(self, job_ids: Iterable[str]) -> None:
        """Begin to wait for jobs. One that has ended already, or is not there, comes at once."""
        self._watched.add(job_ids)

    def close(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None

    def next_ended(self, wait_s: float) -> list[str]:
        """Return jobs that have ended, each once; empty where none does within `wait_s`.

        Raises:
            redis.exceptions.ConnectionError: the broker has been away for `OUTAGE_LIMIT_S`.
        """
        try:
            self._subscribe()
            if not self._watched.has_ended and len(self):
                self._listen(wait_s)
            if time.monotonic() - self._looked_at >= POLL_INTERVAL_S:
                self._look(list(self._watched.pending))
                self._looked_at = time.monotonic()
            self._outage.over()
        except CONNECTION_ERRORS as error:
            self.close()
            self._watched.lose_connection()
            time.sleep(self._outage.check(error))
        ended = self._watched.take_ended()
        self._unsubscribe(ended)
        return ended

    def _subscribe(self) -> None:
        """Subscribe to new jobs and look at each once after that: no end can be missed."""
        for job_ids in chunks(list(self._watched.unsubscribed), MAX_AT_ONCE):
            if self._pubsub is None:
                self._pubsub = self._store.client.pubsub()
            self._pubsub.subscribe(*map(keys.channel, job_ids))
            missing = set(job_ids)
            deadline = time.monotonic() + CONFIRM_LIMIT_S
            while missing:
                if time.monotonic() > deadline:
                    raise RedisTimeoutError("the broker confirms no subscription")
                missing.discard(self._watched.note(self._pubsub.get_message(timeout=1.0)) or "")
            for job_id in job_ids:
                self._watched.unsubscribed.pop(job_id, None)
            self._look(job_ids)

    def _listen(self, wait_s: float) -> None:
        """Take in what comes within `wait_s`, up to the first end and all that is there then."""
        assert self._pubsub is not None
        until = time.monotonic() + min(wait_s, POLL_INTERVAL_S)
        while not self._watched.has_ended and (left_s := until - time.monotonic()) > 0:
            self._watched.note(self._pubsub.get_message(timeout=left_s))
        for _ in range(MAX_AT_ONCE):
            message = self._pubsub.get_message(timeout=0.0)
            if message is None:
                return
            self._watched.note(message)

    def _look(self, job_ids: Iterable[str]) -> None:
        for some in chunks(list(job_ids), MAX_AT_ONCE):
            for job_id, state in zip(some, self._store.states(some), strict=True):
                self._watched.note_state(job_id, state)

    def _unsubscribe(self, job_ids: list[str]) -> None:
        if self._pubsub is None or not job_ids:
            return
        try:
            channels = map(keys.channel, job_ids)
            self._pubsub.unsubscribe(*channels)
        except CONNECTION_ERRORS:
            self.close()
            self._watched.lose_connection()
