"""The series of a gateway, and what it counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .series import Counter, Histogram, Kind, Reading, Series, number

_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0),
    3600.0,
)
REQUESTS: Final = Series(
    "batchmill_http_requests_total",
    Kind.COUNTER,
    "Requests that were answered, by handler (`none`: no such path), method and status; 499 is a "
    "client that left before its response began.",
    ("handler", "method", "status"),
)
REQUEST_TIME: Final = Series(
    "batchmill_http_request_duration_seconds",
    Kind.HISTOGRAM,
    "Seconds from a request to the end of its response, streams included.",
    bounds=_SECONDS,
)
FIRST_BYTE_TIME: Final = Series(
    "batchmill_http_time_to_first_byte_seconds",
    Kind.HISTOGRAM,
    "Seconds from a request to the first bytes of its response's body.",
    bounds=_SECONDS,
)
REQUESTS_IN_FLIGHT: Final = Series(
    "batchmill_http_requests_in_flight", Kind.GAUGE, "Requests that are not answered yet."
)
GATEWAY_SERIES: Final = (REQUESTS, REQUEST_TIME, FIRST_BYTE_TIME, REQUESTS_IN_FLIGHT)


class GatewayMeter:
    """Counts requests. One thread calls it: that of the event loop."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._requests = Counter(REQUESTS)
        self._request_time = Histogram(REQUEST_TIME)
        self._first_byte_time = Histogram(FIRST_BYTE_TIME)
        self._in_flight = 0

    def note_start(self) -> None:
        """Count a request that begins."""
        self._in_flight += 1

    def note_end(
        self,
        labels: tuple[str, str, str],
        *,
        first_byte_s: float | None,
        duration_s: float,
    ) -> None:
        """Count a request that ends.

        Args:
            labels: handler, method and status.
            first_byte_s: seconds until the first bytes of the body; None without any.
            duration_s: seconds until the end.
        """
        self._in_flight -= 1
        self._requests.add(1, labels)
        self._request_time.observe(duration_s)
        if first_byte_s is not None:
            self._first_byte_time.observe(first_byte_s)

    def read(self) -> Iterable[Reading]:
        """Return all numbers. From any thread."""
        counted = (self._requests, self._request_time, self._first_byte_time)
        return [
            *(each.read() for each in counted),
            *number(REQUESTS_IN_FLIGHT, self._in_flight),
        ]
