"""The speed of an engine is that of its full batches."""

from __future__ import annotations

import pytest

from batchmill.worker.jobs.throughput import BusySpeed


def compute(speed: BusySpeed, num_seqs: int, tokens_per_s: int, windows: int = 1) -> None:
    """Note steps of an eighth of a second, 40 per window."""
    for _ in range(40 * windows):
        speed.note_step(num_seqs, tokens_per_s // 8, 0.125)


def test_unknown_until_the_first_five_seconds_of_work() -> None:
    speed = BusySpeed()
    for _ in range(49):
        speed.note_step(4, 100, 0.1)
    assert speed.tokens_per_s is None
    speed.note_step(4, 100, 0.11)
    assert speed.tokens_per_s == pytest.approx(1000, rel=0.01)


def test_small_batches_do_not_lower_it() -> None:
    speed = BusySpeed()
    compute(speed, 2, 200)
    assert speed.tokens_per_s == pytest.approx(200, rel=0.03)
    compute(speed, 64, 3000)  # fuller batches count at once
    assert speed.tokens_per_s == pytest.approx(3000, rel=0.03)
    compute(speed, 2, 200, windows=5)
    assert speed.tokens_per_s == pytest.approx(3000, rel=0.03)


def test_a_machine_that_becomes_slower_is_noticed_with_full_batches() -> None:
    speed = BusySpeed()
    compute(speed, 64, 3000)
    compute(speed, 60, 1000, windows=10)
    assert speed.tokens_per_s == pytest.approx(1000, rel=0.1)


def test_batches_that_stay_small_count_in_the_end() -> None:
    speed = BusySpeed()
    compute(speed, 64, 3000)
    compute(speed, 32, 1000, windows=150)  # the cache holds no more requests by now
    assert speed.tokens_per_s == pytest.approx(1000, rel=0.1)
