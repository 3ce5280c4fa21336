"""The series of a deliverer, and what it counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .series import Counter, Histogram, Kind, Reading, Series

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
ATTEMPTS: Final = Series(
    "batchmill_webhook_attempts_total",
    Kind.COUNTER,
    "Attempts to deliver an event, by outcome (delivered, retry, exhausted, disabled or refused) "
    "and status (2xx, 3xx, 4xx, 5xx or none).",
    ("outcome", "status"),
)
ATTEMPT_TIME: Final = Series(
    "batchmill_webhook_attempt_seconds",
    Kind.HISTOGRAM,
    "Seconds per attempt.",
    bounds=_SECONDS,
)
IN_FLIGHT: Final = Series(
    "batchmill_webhooks_in_flight", Kind.GAUGE, "Deliveries in flight in this deliverer."
)
OUTBOX_SILENT: Final = Series(
    "batchmill_outbox_silent_seconds",
    Kind.GAUGE,
    "Seconds for which Redis has not replied to the deliverer.",
)
DELIVERER_SERIES: Final = (ATTEMPTS, ATTEMPT_TIME, IN_FLIGHT, OUTBOX_SILENT)


class DelivererMeter:
    """Counts attempts. One thread calls it: that of the event loop."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._attempts = Counter(ATTEMPTS)
        self._attempt_time = Histogram(ATTEMPT_TIME)
        self._attempts.add(0, ("delivered", "2xx"))

    def note_attempt(self, outcome: str, status: int | None, duration_s: float) -> None:
        """Count an attempt.

        Args:
            outcome: what follows from it.
            status: of the response; None without one.
            duration_s: seconds that it took.
        """
        shown = "none" if status is None else f"{status // 100}xx"
        self._attempts.add(1, (outcome, shown))
        self._attempt_time.observe(duration_s)

    def read(self) -> Iterable[Reading]:
        """Return all numbers. From any thread."""
        return [self._attempts.read(), self._attempt_time.read()]
