"""The prefixes that this worker's engine has computed lately, so that it can take jobs for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from batchmill.worker.engine_host.messages import Finished

from .active_job import ActiveJob

#: Prefixes that are remembered; every claim sends them.
_MAX_PREFIXES: Final = 16
#: A job that found fewer cached tokens says that the engine has dropped its prefix.
_LEAST_CACHED_TOKENS: Final = 32


class HeldPrefixes:
    """Remembers the prefixes of jobs that were claimed, and forgets those that are not cached.

    Thread-safe: the event loop claims, and the thread of the engine link reports ends.
    """

    def __init__(self, *, is_on: bool) -> None:
        """Remember nothing if it is off: claims then do not look for other jobs."""
        self._is_on = is_on
        self._lock = threading.Lock()
        self._prefixes: OrderedDict[str, None] = OrderedDict()

    def list(self) -> tuple[str, ...]:
        """Return the prefixes that the engine probably holds."""
        with self._lock:
            return tuple(self._prefixes)

    def note_claim(self, prefix: str) -> None:
        """Note that a job with this prefix is on its way to the engine."""
        if not self._is_on or not prefix:
            return
        with self._lock:
            self._prefixes[prefix] = None
            self._prefixes.move_to_end(prefix)
            if len(self._prefixes) > _MAX_PREFIXES:
                self._prefixes.popitem(last=False)

    def note_finished(self, job: ActiveJob, finished: Finished) -> None:
        """Forget the prefix of a job that was claimed for it in vain."""
        if job.claimed_for_prefix and finished.num_cached_tokens < _LEAST_CACHED_TOKENS:
            with self._lock:
                self._prefixes.pop(job.claim.prefix, None)

    def clear(self) -> None:
        """Forget all: the engine is gone."""
        with self._lock:
            self._prefixes.clear()
