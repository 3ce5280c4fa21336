"""The load of all workers over the last hours: samples in a bounded list, one per interval."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Final, TypeGuard

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Call, Read, stored
from batchmill.producer.protocol.calls.load_history import store_sample

#: Time between two samples, milliseconds.
INTERVAL_MS: Final = 15_000
#: Samples that are kept: six hours of them, some 150 KB.
MAX_SAMPLES: Final = 6 * 3_600_000 // INTERVAL_MS


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The load at one moment. A number is None if no worker reported it.

    Samples are stored as lists of numbers in the order of these fields: add new ones at the end.
    """

    #: Redis' clock, milliseconds; 0 before the sample is stored.
    at_ms: int = 0
    #: Jobs that wait, delayed ones included; and those that run.
    queued: float | None = None
    in_progress: float | None = None
    #: Seconds that the oldest waiting job has waited.
    oldest_s: float | None = None
    #: Jobs that were submitted, and that have ended, since the store was created.
    submitted: float | None = None
    ended: float | None = None
    #: Of those that have ended, those without a completion.
    unfinished: float | None = None
    #: Workers that are alive.
    workers: float | None = None
    #: Tokens that they generate per second.
    tokens_per_s: float | None = None
    #: Requests in their batches, and the most that these may hold.
    running: float | None = None
    places: float | None = None
    #: Blocks of their KV caches: those in use, and all.
    used_blocks: float | None = None
    blocks: float | None = None
    #: Of the jobs that ended in the last minute, seconds from the claim to the first token.
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    #: Of these jobs, seconds from the submit to the first claim.
    queue_p50_s: float | None = None
    queue_p95_s: float | None = None
    #: Webhook events that wait for delivery, and dead letters.
    outbox: float | None = None
    dead_letters: float | None = None


def add_sample(sample: LoadSample) -> Call[bool]:
    """Store a sample, unless another program has stored one in this interval."""
    values = [None if value is None else round(value, 3) for value in astuple(sample)[1:]]
    text = json.dumps(values, separators=(",", ":"))
    return store_sample(text, interval_ms=INTERVAL_MS, max_samples=MAX_SAMPLES)


def load_history(num_samples: int) -> Read[list[LoadSample]]:
    """Read the newest samples, oldest first."""

    def parse(replies: list[Any]) -> list[LoadSample]:
        found = map(_read, stored(replies[0], default=[]))
        return [sample for sample in found if sample is not None][::-1]

    return Read(
        lambda pipeline: pipeline.lrange(keys.LOAD_HISTORY, 0, num_samples - 1),
        parse,
        keeps_errors=True,
    )


def _read(text: bytes) -> LoadSample | None:
    """Return a sample; None if batchmill did not write it. A later version may have more fields."""
    at_ms, _, rest = text.partition(b" ")
    try:
        values = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or not (at_ms.isdigit() and len(at_ms) < 16):
        return None
    if not all(value is None or is_load(value) for value in values):
        return None
    names = [field.name for field in fields(LoadSample)][1:]
    return replace(LoadSample(int(at_ms)), **dict(zip(names, values, strict=False)))


def is_load(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that a chart can show: neither infinite nor absurd."""
    return isinstance(value, int | float) and abs(value) < 2**63
