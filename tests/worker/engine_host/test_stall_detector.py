"""For how long an engine counts as stuck."""

from __future__ import annotations

import pytest

from batchmill.worker.engine_host.stall_detector import StallDetector


def test_the_time_counts_from_the_last_movement() -> None:
    detector = StallDetector(100.0)
    assert detector.observe(100.5, 1, is_ready=True) == 0
    assert detector.observe(101.0, 1, is_ready=True) == pytest.approx(0.5)
    assert detector.observe(101.9, 1, is_ready=True) == pytest.approx(1.4)
    assert detector.observe(102.0, 2, is_ready=True) == 0


def test_an_engine_that_is_loading_is_not_stuck() -> None:
    detector = StallDetector(100.0)
    assert detector.observe(100.9, 0, is_ready=False) == 0


def test_a_time_without_observations_counts_only_in_part() -> None:
    detector = StallDetector(100.0)
    assert detector.observe(5000.0, 0, is_ready=True) == 1.0


def test_a_stuck_engine_gets_no_more_jobs_until_it_moves() -> None:
    detector = StallDetector(0.0)
    for second in range(1, 11):
        assert detector.is_moving
        detector.observe(float(second), 0, is_ready=True)
    assert not detector.is_moving
    detector.observe(11.0, 1, is_ready=True)
    assert detector.is_moving
