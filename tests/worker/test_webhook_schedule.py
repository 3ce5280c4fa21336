from __future__ import annotations

import random

import pytest

from batchmill.worker.webhook_schedule import RetrySchedule
from batchmill.worker.webhook_settings import DEFAULT_SCHEDULE_S, WebhookSettings

EXACT = RetrySchedule(DEFAULT_SCHEDULE_S, jitter=0.0)
RNG = random.Random(0)


def test_default_waits_are_those_of_standard_webhooks() -> None:
    waits = [EXACT.wait_before_next_s(n, retry_after_s=None, rng=RNG) for n in range(1, 10)]
    hours = 3600.0
    assert waits[:3] == [5.0, 300.0, 1800.0]
    assert waits[3:] == [n * hours for n in (2, 5, 10, 14, 20, 24)]


def test_after_the_last_attempt_there_is_no_other() -> None:
    assert EXACT.wait_before_next_s(10, retry_after_s=None, rng=RNG) is None
    assert EXACT.wait_before_next_s(11, retry_after_s=1.0, rng=RNG) is None


def test_waits_vary_by_a_fifth_and_no_more() -> None:
    schedule = RetrySchedule((0.0, 100.0), jitter=0.2)
    waits = [schedule.wait_before_next_s(1, retry_after_s=None, rng=RNG) for _ in range(1000)]
    assert all(wait is not None and 80 <= wait <= 120 for wait in waits)
    assert len(set(waits)) > 900


@pytest.mark.parametrize(
    ("retry_after_s", "expected_s"),
    [(1.0, 300.0), (400.0, 400.0), (1e9, 600.0), (None, 300.0)],
)
def test_retry_after_lengthens_a_wait_to_at_most_twice(
    retry_after_s: float | None, expected_s: float
) -> None:
    assert EXACT.wait_before_next_s(2, retry_after_s=retry_after_s, rng=RNG) == expected_s


def test_retry_after_may_stretch_a_short_wait_to_a_minute() -> None:
    assert EXACT.wait_before_next_s(1, retry_after_s=1e9, rng=RNG) == 60.0


def test_schedule_is_read_as_numbers_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SCHEDULE_S", "0, 1.5,3")
    assert WebhookSettings().webhook_schedule_s == (0.0, 1.5, 3.0)


@pytest.mark.parametrize("value", ["", "0,-1", "0,inf", "soon"])
def test_schedule_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SCHEDULE_S", value)
    with pytest.raises(ValueError, match="webhook_schedule_s"):
        WebhookSettings()


def test_secret_does_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "whsec_" + "A" * 32
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET", secret)
    assert WebhookSettings().secrets == (secret,)
    assert secret not in repr(WebhookSettings())
