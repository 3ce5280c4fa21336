"""The page of scenarios has all of them, each with tests that exist and are always run.

So have the attacks on the page "before and after".
"""

from __future__ import annotations

import ast
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
ATTACKS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "faults-before-and-after.md").read_text().splitlines()
    if re.match(r"\| \d\d", line)
]
NUM_ATTACKS = 44


def test_every_scenario_has_a_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, NUM_SCENARIOS + 1))
    assert {len(row) for row in ROWS} == {4}


def test_every_attack_has_a_row() -> None:
    assert len({row[0].split()[0] for row in ATTACKS}) == len(ATTACKS) == NUM_ATTACKS
    assert {len(row) for row in ATTACKS} == {5}


@pytest.mark.parametrize("row", ROWS + ATTACKS, ids=lambda row: row[0].split()[0])
def test_the_tests_of_a_row_exist(row: list[str]) -> None:
    tests = re.findall(r"`(tests/[^`]+)`", row[-1])
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        module = ast.parse((ROOT / path).read_text())
        found = [
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.name == name or (not name and node.name.startswith("test_")))
        ]
        assert found, f"{test} does not exist"
        marks = [ast.unparse(mark) for each in found for mark in each.decorator_list]
        marks += [ast.unparse(node) for node in module.body if _sets_marks(node)]
        left_out = [mark for mark in marks if re.search(r"\b(skip|skipif|xfail|nightly)\b", mark)]
        assert not left_out, f"{test} is not always run: {left_out}"


def _sets_marks(node: ast.stmt) -> bool:
    """Return whether a statement marks all tests of its module."""
    return isinstance(node, ast.Assign) and "pytestmark" in map(ast.unparse, node.targets)
