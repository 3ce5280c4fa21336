"""The table of a job's attempts, of `batchmill status` and `dead-letters show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchmill.worker.terminal import format_time_ms, print_table

if TYPE_CHECKING:
    from batchmill.producer.protocol.attempts import Attempt

#: What an operator asks about a cause: what happened, and whether it counts towards
#: `attempts_exhausted`. `docs/protocol.md` has the same in full.
_MEANINGS = {
    "drain": "the worker was stopped in order; not held against the job",
    "not_started": "the engine died before it had the job; not held against it",
    "moved": "another worker had room for the job; not held against it",
    "sliced": "its time slice was over, and other jobs waited; not held against the job",
    "worker_lost": "the worker was gone; held against the job from the third time in a row on",
    "lease_expired": "the worker was frozen or cut off; held against the job as worker_lost",
    "engine_death": "the engine died with the job; held against it",
    "engine_stall": "the engine stood still with the job; held against it",
}
_COLUMNS = ("attempt", "worker", "claimed", "ended", "tokens", "cause")


def print_history(history: Sequence[Attempt], num_left_out: int) -> None:
    """Print one row per attempt.

    Args:
        history: the attempts, oldest first.
        num_left_out: attempts that the record does not keep.
    """
    from batchmill.producer.protocol.attempts import count_causes

    causes = count_causes(history)
    counts = [f"{cause} {number}" for cause, number in causes.items()]
    left_out = [f"{num_left_out} more are not kept"] if num_left_out else []
    title = ", ".join(counts + left_out) or "the first one runs"
    print_table(f"\nAttempts: {title}", _COLUMNS, map(_row, history))
    for cause in causes:
        if cause in _MEANINGS:
            print(f"{cause}: {_MEANINGS[cause]}")


def _row(attempt: Attempt) -> tuple[object, ...]:
    return (
        _shown(attempt.attempt),
        attempt.worker or "-",
        format_time_ms(attempt.claimed_at_ms),
        format_time_ms(attempt.ended_at_ms),
        f"{_shown(attempt.tokens_at_claim)} to {_shown(attempt.tokens_at_end)}",
        attempt.code or attempt.cause or "running",
    )


def _shown(number: int | None) -> str:
    return "-" if number is None else str(number)
