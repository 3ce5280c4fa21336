"""The page of request controls is current, and every control has a test."""

from __future__ import annotations

from dataclasses import fields

from batchmill.engine import SamplingParams

from .feature_table import ASKED, PAGE, ROOT, marked_tests, page


def test_the_page_of_request_controls_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python tests/structure/feature_table.py --write"


def test_every_control_has_a_test_and_every_mark_names_a_control() -> None:
    assert set(marked_tests()) == {field.name for field in fields(SamplingParams)}


def test_the_tests_that_the_page_names_exist() -> None:
    for test in [test for _, test in ASKED.values()]:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), test
