"""Several secrets in one value, while one replaces another: `whsec_new,whsec_old@TIME`.

Deliveries are signed with each, newest first. After its time an old secret neither signs nor
verifies, so that a rotation ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class DatedSecret:
    """A secret, and when it ends."""

    secret: str
    #: Unix time in seconds; None if it does not end.
    until_s: float | None = None

    def is_valid(self, now_s: float) -> bool:
        """Return whether it still signs and verifies."""
        return self.until_s is None or now_s < self.until_s

    def __str__(self) -> str:
        if self.until_s is None:
            return self.secret
        return f"{self.secret}@{format_until(self.until_s)}"


def read_secrets(text: str) -> list[DatedSecret]:
    """Return the secrets of a value, newest first. They are not checked here.

    Raises:
        ValueError: a time is malformed. The message has no secret in it.
    """
    return [_read(part.strip()) for part in text.split(",") if part.strip()]


def valid_secrets(text: str, *, now_s: float | None = None) -> list[str]:
    """Return the secrets of a value that have not ended, newest first.

    Raises:
        ValueError: a time is malformed.
    """
    now_s = time.time() if now_s is None else now_s
    return [each.secret for each in read_secrets(text) if each.is_valid(now_s)]


def rotate_secrets(
    secrets: Sequence[DatedSecret], new: str, *, overlap_s: float, now_s: float
) -> list[DatedSecret]:
    """Put a new secret first, and end the others after an overlap, unless they end before."""
    end_s = now_s + overlap_s
    old = (
        DatedSecret(each.secret, min(end_s, end_s if each.until_s is None else each.until_s))
        for each in secrets
        if each.is_valid(now_s)
    )
    return [DatedSecret(new), *(each for each in old if each.is_valid(now_s))]


def format_secrets(secrets: Sequence[DatedSecret]) -> str:
    """Return secrets as one value."""
    return ",".join(map(str, secrets))


def format_until(until_s: float) -> str:
    """Return the time at which a secret ends, as the value has it."""
    return datetime.fromtimestamp(until_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _read(part: str) -> DatedSecret:
    secret, separator, until = part.partition("@")
    if not separator:
        return DatedSecret(secret)
    try:
        moment = datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(
            f"the time {until[:40]!r} after a secret must be such as 2026-01-31T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return DatedSecret(secret, moment.timestamp())
