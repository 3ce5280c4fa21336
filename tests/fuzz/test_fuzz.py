"""Random structures, documents, messages, templates and records are answered or refused by name."""

from __future__ import annotations

import pytest

from .fuzz import MAX_CPU_S, MAX_IDLE_S, fuzz, too_slow
from .subjects import SUBJECTS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_random_inputs_are_answered_or_refused(subject: str) -> None:
    outcome = fuzz(subject, seed=1, seconds=1.5)
    assert outcome.defects == []
    assert outcome.verdicts.total() >= 1  # more on an idle machine


def test_an_input_is_judged_by_its_own_work_and_not_by_the_load_of_the_machine() -> None:
    assert too_slow(MAX_IDLE_S * 5, MAX_CPU_S / 2, load_per_core=6.0) is None
    assert too_slow(MAX_IDLE_S * 7, MAX_CPU_S / 2, load_per_core=6.0) is not None
    assert too_slow(MAX_IDLE_S * 2, 0.0, load_per_core=0.1) is not None
    assert too_slow(MAX_CPU_S + 1, MAX_CPU_S + 1, load_per_core=6.0) is not None
