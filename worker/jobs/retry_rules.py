"""Whether a failed attempt is followed by another one, and after which wait."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from batchmill.producer.job.retry import RetryPolicy
from batchmill.worker.settings import WorkerSettings

Value = TypeVar("Value")
#: A wait is shortened by up to this share, so that jobs that failed together do not all return in
#: one moment.
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The retry policy of one job, with the operator's defaults."""

    #: Attempts that may fail before the job fails.
    max_attempts: int
    backoff_s: float
    max_backoff_s: float
    codes: frozenset[str]

    def wait_s(self, code: str, num_failed: int, rng: random.Random) -> float | None:
        """Return the seconds until the next attempt; None if there is none.

        Args:
            code: of the error.
            num_failed: failed attempts so far, at least 1.
            rng: source of the variation.
        """
        if code not in self.codes or num_failed >= self.max_attempts:
            return None
        doublings = min(num_failed - 1, 1000)  # of a float, which has 1,023
        longest_s = min(self.backoff_s * 2.0**doublings, self.max_backoff_s)
        return longest_s * rng.uniform(1 - _JITTER, 1)


def retry_rules(policy: RetryPolicy | None, settings: WorkerSettings) -> RetryRules:
    """Return the rules for a job: its own policy, and the operator's defaults for the rest."""
    policy = policy or RetryPolicy()
    backoff_s = _given(policy.backoff_s, settings.retry_backoff_s)
    max_backoff_s = _given(policy.max_backoff_s, settings.retry_max_backoff_s)
    if policy.max_backoff_s is None:  # the job's own first wait may be longer than the default
        max_backoff_s = max(max_backoff_s, backoff_s)
    return RetryRules(
        max_attempts=_given(policy.max_attempts, settings.retry_max_attempts),
        backoff_s=min(backoff_s, max_backoff_s),
        max_backoff_s=max_backoff_s,
        codes=frozenset(settings.retry_codes if policy.codes is None else policy.codes),
    )


def _given(value: Value | None, default: Value) -> Value:
    return default if value is None else value
