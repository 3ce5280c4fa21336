"""The retry schedule, outcomes of attempts, and the settings of secrets."""

from __future__ import annotations

import json
import random

import pytest

from batchmill.worker.webhooks.schedule import RetrySchedule
from batchmill.worker.webhooks.sender import SendOutcome
from batchmill.worker.webhooks.settings import DEFAULT_SCHEDULE_S, WebhookSettings

EXACT = RetrySchedule(DEFAULT_SCHEDULE_S, jitter=0.0)
RNG = random.Random(0)


def test_default_waits_are_those_of_standard_webhooks() -> None:
    waits = [EXACT.wait_before_next_s(n, retry_after_s=None, rng=RNG) for n in range(1, 10)]
    hours = 3600.0
    assert waits[:3] == [5.0, 300.0, 1800.0]
    assert waits[3:] == [n * hours for n in (2, 5, 10, 14, 20, 24)]


def test_there_is_no_attempt_after_the_last() -> None:
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


def test_retry_after_may_lengthen_a_short_wait_to_a_minute() -> None:
    assert EXACT.wait_before_next_s(1, retry_after_s=1e9, rng=RNG) == 60.0


def test_schedule_is_read_as_numbers_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SCHEDULE_S", "0, 1.5,3")
    assert WebhookSettings().webhook_schedule_s == (0.0, 1.5, 3.0)


@pytest.mark.parametrize("value", ["0,-1", "0,inf", "soon"])
def test_invalid_schedule_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SCHEDULE_S", value)
    with pytest.raises(ValueError, match="webhook_schedule_s"):
        WebhookSettings()


def test_secret_does_not_show_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "whsec_" + "A" * 32
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET", secret)
    assert WebhookSettings().secrets == (secret,)
    assert secret not in repr(WebhookSettings())


@pytest.mark.parametrize(
    ("attempts", "retry_after_s", "least_s"),
    [(1, None, 60.0), (1, 30.0, 60.0), (1, 1e9, 60.0), (2, None, 300.0), (2, 400.0, 400.0)],
)
def test_busy_receiver_is_not_sent_to_for_at_least_a_minute(
    attempts: int, retry_after_s: float | None, least_s: float
) -> None:
    wait_s = EXACT.wait_before_next_s(attempts, retry_after_s=retry_after_s, rng=RNG, is_busy=True)
    assert wait_s == least_s


def test_variation_never_shortens_the_wait_that_was_asked_for() -> None:
    schedule = RetrySchedule((0.0, 5.0), jitter=0.2)
    waits = [
        schedule.wait_before_next_s(1, retry_after_s=retry_after_s, rng=RNG, is_busy=is_busy)
        for _ in range(500)
        for retry_after_s, is_busy in ((None, True), (60.0, False))
    ]
    assert all(wait is not None and 60 <= wait <= 72 for wait in waits)


@pytest.mark.parametrize(
    "outcome",
    [
        SendOutcome(429), SendOutcome(502), SendOutcome(504), SendOutcome(None, error="timeout"),
    ],
)  # fmt: skip
def test_overload_and_timeouts_count_as_busy(outcome: SendOutcome) -> None:
    assert outcome.is_busy
    assert outcome.is_receiver_fault


@pytest.mark.parametrize("outcome", [SendOutcome(500), SendOutcome(None, error="connect")])
def test_other_failures_are_receiver_faults_and_not_busy(outcome: SendOutcome) -> None:
    assert not outcome.is_busy
    assert outcome.is_receiver_fault


@pytest.mark.parametrize("error", ["internal", "unknown_secret", "refused_address", "refused_port"])
def test_our_own_faults_and_rules_do_not_count_against_the_endpoint(error: str) -> None:
    assert not SendOutcome(None, error=error).is_receiver_fault


def test_a_named_secret_may_have_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = "whsec_" + "A" * 32, "whsec_" + "B" * 32
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRETS", json.dumps({"billing": f"{new},{old}"}))
    settings = WebhookSettings()
    assert settings.secrets_named("billing") == (new, old)
    assert settings.secrets_named("other") == settings.secrets_named("") == ()
    assert new not in repr(settings)


@pytest.mark.parametrize(
    "secrets", [{"a.b": "whsec_" + "A" * 32}, {"a": ""}, {"a": "whsec_short"}, {"a": "secret"}]
)
def test_secrets_that_cannot_sign_are_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str]
) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRETS", json.dumps(secrets))
    with pytest.raises(ValueError, match="BATCHMILL_WEBHOOK_SECRETS"):
        WebhookSettings()


def test_secrets_that_are_not_json_are_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRETS", '{"billing": "hunter2"')
    with pytest.raises(ValueError, match="BATCHMILL_WEBHOOK_SECRETS must be JSON") as caught:
        WebhookSettings()
    assert "hunter2" not in str(caught.value)
