"""How long jobs stand still after a fault: from the fault to the next saved token or the end."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

#: Longest wait for a reply: the main thread brings faults about meanwhile.
_TIMEOUT_S = 0.3
#: Jobs that are watched after one fault.
_MAX_WATCHED = 32
_POLL_S = 0.05
_TERMINAL = {state.value.encode() for state in JobState if state.is_terminal}


@dataclass(slots=True)
class _Watched:
    kind: str
    job_id: str
    #: Bytes of its tokens when the fault happened; -1 until they are read.
    num_bytes: int
    #: When the time began.
    since_s: float


class RecoveryWatch:
    """Owns a thread that looks at the victims of faults."""

    def __init__(self, url: str) -> None:
        """Start the thread.

        Args:
            url: broker URL that no fault of the network disturbs.
        """
        #: Seconds until each watched job went on, by kind of fault.
        self.times_s: defaultdict[str, list[float]] = defaultdict(list)
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        self._lock = threading.Lock()
        self._watched: list[_Watched] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-recovery", daemon=True)
        self._thread.start()

    def victims(self) -> dict[str, tuple[str, int]]:
        """Return the jobs that run, with their worker and the bytes of their tokens.

        Call it before the fault; it returns nothing while Redis is down.
        """
        try:
            ids = [job_id.decode() for job_id in self._client.zrange(keys.LEASES, 0, -1)]
            with self._client.pipeline(transaction=False) as pipeline:
                for job_id in ids:
                    pipeline.hget(keys.job(job_id), "owner")
                    pipeline.strlen(keys.tokens(job_id))
                replies = pipeline.execute()
        except redis.RedisError:
            return {}
        found = zip(ids, replies[::2], replies[1::2], strict=True)
        return {
            job_id: (owner.decode(), num_bytes)
            for job_id, owner, num_bytes in found
            if owner is not None
        }

    def watch(self, kind: str, victims: Mapping[str, int]) -> None:
        """Begin to measure for the victims of a fault."""
        now_s = time.monotonic()
        some = list(victims.items())[:_MAX_WATCHED]
        with self._lock:
            self._watched += [_Watched(kind, job_id, size, now_s) for job_id, size in some]

    def close(self) -> int:
        """End the thread; return how many jobs had not gone on."""
        self._closed.set()
        self._thread.join()
        self._client.close()
        return len(self._watched)

    def _run(self) -> None:
        while not self._closed.wait(_POLL_S):
            try:
                self._look()
            except redis.RedisError:
                continue  # the server is down

    def _look(self) -> None:
        with self._lock:
            watched = list(self._watched)
        if not watched:
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for one in watched:
                pipeline.hget(keys.job(one.job_id), "state")
                pipeline.strlen(keys.tokens(one.job_id))
            replies = pipeline.execute()
        now_s = time.monotonic()
        states = zip(watched, replies[::2], replies[1::2], strict=True)
        moved = [
            one
            for one, state, size in states
            if state is None or state in _TERMINAL or size > one.num_bytes
        ]
        for one in moved:
            self.times_s[one.kind].append(now_s - one.since_s)
        with self._lock:
            self._watched = [one for one in self._watched if one not in moved]
