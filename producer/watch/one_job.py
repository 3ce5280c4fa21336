"""Waiting for the end of a job: woken by its channel, with a slow poll as a safety net."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from redis import exceptions as redis_errors
from redis.client import PubSub

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.outcomes import unknown

#: A wake-up can be lost while the connection is cut: look at the record this often anyway.
POLL_INTERVAL_S = 2.0
#: A broker that is away for this long is an error; a restart is not.
OUTAGE_LIMIT_S = 30.0
_RECONNECT_PAUSE_S = 0.1

CONNECTION_ERRORS = (redis_errors.ConnectionError, redis_errors.TimeoutError)


class Patience:
    """How long a wait may go on: the caller's time, and the broker's absence."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._away_since: float | None = None

    def next_wait_s(self) -> float:
        """Return the seconds to wait until the next look at the record.

        Raises:
            ResultTimeout: the caller's time is over.
        """
        self._away_since = None
        if self._deadline is None:
            return POLL_INTERVAL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise self._timeout()
        return min(POLL_INTERVAL_S, left_s)

    def pause_s(self, error: Exception) -> float:
        """Return the seconds to wait before connecting again.

        Raises:
            ResultTimeout: the caller's time is over.
            Exception: `error`, where the broker has been away for too long.
        """
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        if self._deadline is not None and now >= self._deadline:
            raise self._timeout() from error
        if now - self._away_since > OUTAGE_LIMIT_S:
            raise error
        return _RECONNECT_PAUSE_S

    def _timeout(self) -> ResultTimeout:
        return ResultTimeout(
            f"job {self._job_id} has not ended after {self._timeout_s} s; it goes on: "
            "wait again, or cancel it"
        )


def wait_until_ended(store: JobStore, job_id: str, timeout_s: float | None) -> None:
    """Return when the job has ended.

    Raises:
        ResultTimeout: it has not, after `timeout_s` seconds.
        UnknownJob: there is no such job.
        redis.exceptions.ConnectionError: the broker has been away for `OUTAGE_LIMIT_S`.
    """
    patience = Patience(job_id, timeout_s)
    while True:
        try:
            if _has_ended(store, job_id):
                return
            patience.next_wait_s()
            _watch(store, job_id, patience)
            return
        except CONNECTION_ERRORS as error:
            time.sleep(patience.pause_s(error))


def _has_ended(store: JobStore, job_id: str) -> bool:
    state = store.state(job_id)
    if state is None:
        raise unknown(job_id)
    return state.is_terminal


def _watch(store: JobStore, job_id: str, patience: Patience) -> None:
    """Listen to the job's channel until it has ended."""
    pubsub: PubSub = store.client.pubsub()
    with contextlib.closing(pubsub) as channel:
        channel.subscribe(keys.channel(job_id))
        # The first message confirms the subscription. Only a look after it cannot miss the end.
        channel.get_message(timeout=patience.next_wait_s())
        while not _has_ended(store, job_id):
            _next_state_message(channel, patience)


def _next_state_message(channel: PubSub, patience: Patience) -> None:
    """Return when there is reason to look at the record, or when it is time to."""
    while is_progress(channel.get_message(timeout=patience.next_wait_s())):
        pass


def is_progress(message: Mapping[str, Any] | None) -> bool:
    """Whether a message only tells of more tokens: no reason to look at the state."""
    if message is None or message["type"] != "message":
        return False
    return bytes(message["data"]).startswith(b'{"tokens"')
