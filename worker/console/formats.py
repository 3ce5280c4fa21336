"""How numbers, times and durations are written on the pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

NOTHING: Final = "–"  # noqa: RUF001
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number(value: float | None) -> str:
    """Return a number with separators, and a digit after the point if it is small."""
    if value is None:
        return NOTHING
    if value == int(value) or abs(value) >= 100:
        return f"{round(value):,}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def compact(value: float | None) -> str:
    """Return a number in few characters, such as `12.3k`."""
    if value is None:
        return NOTHING
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if suffix == "k" else size)
            return f"{scaled:.3g}{suffix}"
    return number(value)


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units, such as `3 min 5 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = round(seconds), list[str]()
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def ago(at_ms: float | None) -> str:
    """Return how long ago a moment was, or how far ahead it is."""
    if not at_ms:
        return NOTHING
    seconds = time.time() - at_ms / 1000
    if abs(seconds) < 5:
        return "now"
    whole = duration(float(round(abs(seconds)))) if abs(seconds) >= 10 else f"{abs(seconds):.0f} s"
    return f"in {whole}" if seconds < 0 else f"{whole} ago"


def stamp(at_ms: float | None) -> str:
    """Return a moment in UTC, to the second."""
    return NOTHING if not at_ms else _moment(at_ms).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at_ms: float | None) -> str:
    """Return the time of day of a moment in UTC, to the millisecond."""
    return NOTHING if not at_ms else _moment(at_ms).strftime("%H:%M:%S.%f")[:-3]


def iso(at_ms: float | None) -> str:
    """Return a moment for the attribute of a `time` element."""
    return "" if not at_ms else _moment(at_ms).isoformat()


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return NOTHING if share is None else f"{share * 100:.0f} %"


def size(num_bytes: int | None) -> str:
    """Return a number of bytes."""
    if num_bytes is None:
        return NOTHING
    for limit, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.1f} {unit}"
    return f"{num_bytes} B"


def words(name: str) -> str:
    """Return a name of the protocol in words."""
    return name.replace("_", " ")


def short(text: str) -> str:
    """Return a long id with its middle left out."""
    return text if len(text) <= 24 else f"{text[:15]}…{text[-6:]}"


def _moment(at_ms: float) -> datetime:
    # Any client of Redis may have written the number.
    return datetime.fromtimestamp(min(max(at_ms, 0), 253_402_300_799_000) / 1000, UTC)


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "number": number,
    "compact": compact,
    "duration": duration,
    "ago": ago,
    "stamp": stamp,
    "clock": clock,
    "iso": iso,
    "percent": percent,
    "size": size,
    "words": words,
    "short": short,
}
