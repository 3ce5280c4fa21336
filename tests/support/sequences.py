"""How many random sequences of calls a test tries: some in every run, many in the nightly one."""

from __future__ import annotations

import os

from hypothesis import settings

_TIMES_AS_MANY = 20


def sequences(number: int) -> settings:
    """Return the settings for a number of sequences of 40 calls.

    The nightly run, which sets NIGHTLY_TESTS, tries many times as many, and others every night.
    """
    if os.environ.get("NIGHTLY_TESTS"):
        return settings(
            max_examples=number * _TIMES_AS_MANY,
            stateful_step_count=40,
            deadline=None,
            derandomize=False,
        )
    return settings(max_examples=number, stateful_step_count=40, deadline=None)
