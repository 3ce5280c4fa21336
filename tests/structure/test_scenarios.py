"""The page of scenarios has all of them, each with tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "scenarios.md").read_text().splitlines()
    if re.match(r"\| \d+ \|", line)
]
NUM_SCENARIOS = 38


def test_every_scenario_has_a_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, NUM_SCENARIOS + 1))
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_of_a_scenario_exist(row: list[str]) -> None:
    tests = re.findall(r"`(tests/[^`]+)`", row[3])
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), test
