"""Times of Redis' clock as datetimes in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@overload
def moment(unix_ms: int) -> datetime: ...


@overload
def moment(unix_ms: int | None) -> datetime | None: ...


def moment(unix_ms: int | None) -> datetime | None:
    """Return milliseconds of unix time as a datetime in UTC; None for None.

    Raises:
        OverflowError: it is after the year 9999, which only a forged record says.
    """
    # Not `fromtimestamp`, whose float loses milliseconds.
    return None if unix_ms is None else _EPOCH + timedelta(milliseconds=unix_ms)
