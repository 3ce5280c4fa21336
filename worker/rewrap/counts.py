"""What a walk has found: how many values each key has sealed, and what was done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchmill.producer.errors import BatchmillError
from batchmill.producer.protocol.content import UnreadableContent

#: Stands for a key in counts: the value is not sealed.
PLAIN = "-"


class Part(StrEnum):
    """Where sealed values are."""

    JOBS = "jobs"
    OUTPUTS = "outputs"
    LETTERS = "dead letters"
    EVENTS = "webhook events"
    RECEIVERS = "receivers"
    MEDIA = "media"
    FILE_NAMES = "file names"
    FILES = "files"
    #: Digests of jobs and batches with idempotency keys, which cannot always be made again.
    FINGERPRINTS = "fingerprints"


@dataclass(slots=True)
class SealCounts:
    """Numbers of one walk."""

    #: Values by part and key id.
    found: Counter[tuple[Part, str]] = field(default_factory=Counter)
    num_keys_seen: int = 0
    num_rewrapped: int = 0
    #: Values that another program changed at the same moment; the next walk finds them.
    num_changed: int = 0
    #: Values that could not be opened or written, by the code of the error.
    failed: Counter[str] = field(default_factory=Counter)

    def note_unreadable(self, error: UnreadableContent) -> None:
        """Count a value that could not be opened or written."""
        self.failed[error.code if isinstance(error, BatchmillError) else "unreadable"] += 1

    def key_ids(self) -> list[str]:
        """Return the keys that were found, sorted; plain values last."""
        return sorted({key_id for _, key_id in self.found}, key=lambda each: (each == PLAIN, each))

    def num_of(self, key_id: str, part: Part | None = None) -> int:
        """Return how many values a key has sealed, in all or in one part."""
        return sum(
            number
            for (where, each), number in self.found.items()
            if each == key_id and part in (None, where)
        )

    def by_key(self) -> dict[str, dict[str, int]]:
        """Return the numbers by key and part, for scripts."""
        return {
            key_id: {part.value: self.num_of(key_id, part) for part in Part}
            for key_id in self.key_ids()
        }

    def num_left(self, first_key_id: str | None) -> int:
        """Return how many values are not sealed with a key; fingerprints do not count."""
        return sum(
            number
            for (part, key_id), number in self.found.items()
            if key_id != first_key_id and part is not Part.FINGERPRINTS
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything, for scripts."""
        return {
            "values": self.by_key(),
            "rewrapped": self.num_rewrapped,
            "changed_meanwhile": self.num_changed,
            "failed": dict(self.failed),
        }
