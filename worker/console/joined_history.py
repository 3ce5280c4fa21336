"""The history of the load of several shards as one: each shard has its own samples."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Final

from batchmill.producer.store.load_history import INTERVAL_MS, LoadSample

#: Numbers that only grow. A shard without a sample has the number of the nearest one.
_COUNTERS: Final = ("submitted", "ended", "unfinished")
#: Times: those of all shards are not known together, so the middle or the longest one stands.
_MIDDLE: Final = ("ttft_p50_s", "queue_p50_s")
_LONGEST: Final = ("oldest_s", "ttft_p95_s", "queue_p95_s")
_NAMES: Final = tuple(field.name for field in fields(LoadSample) if field.name != "at_ms")


def joined_history(parts: Sequence[Sequence[LoadSample]]) -> Sequence[LoadSample]:
    """Return a sample per interval: the sums of the samples of all shards, oldest first.

    Args:
        parts: the samples of each shard, oldest first.
    """
    if len(parts) == 1:
        return parts[0]
    parts = [part for part in parts if part]
    ends = sorted({sample.at_ms // INTERVAL_MS for part in parts for sample in part})
    return [_joined(parts, (end + 1) * INTERVAL_MS) for end in ends]


def _joined(parts: Sequence[Sequence[LoadSample]], end_ms: int) -> LoadSample:
    near = [_newest(part, end_ms) for part in parts]
    now = [sample for sample in near if 0 <= end_ms - sample.at_ms < 2 * INTERVAL_MS]
    values: dict[str, Any] = {}
    for name in _NAMES:
        found = [getattr(sample, name) for sample in (near if name in _COUNTERS else now)]
        values[name] = _together(name)([value for value in found if value is not None] or [None])
    return LoadSample(at_ms=end_ms, **values)


def _newest(part: Sequence[LoadSample], end_ms: int) -> LoadSample:
    """Return the newest sample before a time; the oldest one if there is none."""
    place = bisect.bisect_left(part, end_ms, key=lambda sample: sample.at_ms)
    return part[max(0, place - 1)]


def _together(name: str) -> Callable[[list[Any]], Any]:
    def unless_unknown(values: list[Any]) -> Any:
        if values == [None]:
            return None
        if name in _MIDDLE:
            return sorted(values)[len(values) // 2]
        return max(values) if name in _LONGEST else sum(values)

    return unless_unknown
