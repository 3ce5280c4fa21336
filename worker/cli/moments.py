"""Points in time as a user types them: a date, a date and time, or a distance such as `2h`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from .errors import usage_error

#: For the help of options.
MOMENT_FORMS = "2026-12-01, 2026-12-01T08:00, or seconds of unix time"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DISTANCE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_UNIX_TIME = re.compile(r"[0-9]{9,11}(?:\.[0-9]+)?")


def parse_moment(option: str, text: str, *, ahead: bool) -> datetime:
    """Return a point in time, with its zone.

    Args:
        option: name of the option, for the message.
        text: a date or time of ISO 8601, in the zone of this machine unless it names one; seconds
            of unix time; or a distance from now: 30s, 10m, 2h, 3d, 1w.
        ahead: whether a distance leads into the future.

    Raises:
        CommandError: it is none of these.
    """
    text = text.strip()
    try:
        if match := _DISTANCE.fullmatch(text):
            distance = timedelta(**{_UNITS[match[2]]: float(match[1])})
            return datetime.now(UTC) + (distance if ahead else -distance)
        if _UNIX_TIME.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        # As `batchmill list` writes it.
        named_utc = text.removesuffix(" UTC")
        found = datetime.fromisoformat(named_utc)
        return found.replace(tzinfo=UTC) if named_utc != text else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise usage_error(
            f"{option} {text!r} must be a time such as 2026-12-01T08:00, or a distance such as 30m,"
            " 2h or 1d"
        ) from None
