"""The receiver of a run's webhooks: it is slow, fails and hangs as the plan says."""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from batchmill.worker.webhooks.local_receiver import ReceivedRequest, WebhookReceiver

from .timeline import now_ms

_OK, _UNAVAILABLE = 204, 503
_SLOW_S, _HANG_S = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Post:
    """One attempt of a delivery."""

    #: Unix time at which the response was sent.
    at_ms: int
    status: int


@dataclass(slots=True)
class Deliveries:
    """The POSTs that arrived, by webhook id."""

    #: Bodies that came under one id; more than one is a broken promise.
    bodies: dict[str, set[bytes]] = field(default_factory=dict)
    #: POSTs per id, those without a response included.
    num_posts: Counter[str] = field(default_factory=Counter)
    #: POSTs that got a response, per id.
    posts: defaultdict[str, list[Post]] = field(default_factory=lambda: defaultdict(list))
    #: Ids that were accepted.
    accepted: set[str] = field(default_factory=set)


class ChaosReceiver:
    """A receiver whose paths behave differently, and which can fail altogether for a while."""

    def __init__(self) -> None:
        """Choose a port; it listens while entered."""
        self.deliveries = Deliveries()
        self.has_errors = False
        self.is_hanging = False
        self._lock = threading.Lock()
        self._receiver = WebhookReceiver(self._respond)

    @property
    def url(self) -> str:
        """Base URL."""
        return self._receiver.url

    def __enter__(self) -> ChaosReceiver:
        self._receiver.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.__exit__()

    def _respond(self, request: ReceivedRequest) -> int:
        event_id = request.headers.get("webhook-id", "")
        with self._lock:
            self.deliveries.bodies.setdefault(event_id, set()).add(request.body)
            self.deliveries.num_posts[event_id] += 1
            num_posts = self.deliveries.num_posts[event_id]
        if self.is_hanging:
            time.sleep(_HANG_S)
        elif request.path.startswith("/slow"):
            time.sleep(_SLOW_S)
        is_failing = self.has_errors or num_posts <= _num_failures(request.path, event_id)
        status = _UNAVAILABLE if is_failing else _OK
        with self._lock:
            self.deliveries.posts[event_id].append(Post(now_ms(), status))
            if status == _OK:
                self.deliveries.accepted.add(event_id)
        return status


def _num_failures(path: str, event_id: str) -> int:
    """Return how many attempts of an event fail: for one of four, as many as its path says."""
    _, _, number = path.partition("/fail-")
    return int(number[:1]) if number and zlib.crc32(event_id.encode()) % 4 == 0 else 0
