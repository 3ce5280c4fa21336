"""Transcripts have the commands of the scripts that record them, and these commands work."""

from __future__ import annotations

import os
import re
import shlex
import shutil

import pytest

from ..structure.public_interface import problem_of_call
from .newcomer import PAGE as NEWCOMER
from .newcomer_metrics import PAGE as METRICS
from .transcript import Page

every_page = pytest.mark.parametrize("page", [NEWCOMER, METRICS], ids=lambda page: page.path.stem)


@every_page
def test_the_page_shows_the_commands_of_the_script_and_what_they_must_print(page: Page) -> None:
    text = page.path.read_text()
    shown = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    assert shown == page.lines, "record it again: the page says how"
    for step in page.steps:
        section = text.partition(f"## {step.title}\n")[2].partition("\n## ")[0]
        missing = [each.expected for each in step.commands if each.expected not in section]
        assert missing == []


@every_page
def test_its_commands_and_options_exist(page: Page) -> None:
    calls = [found[1] for line in page.lines if (found := re.match(r"batchmill (.*)", line))]
    # A redirection belongs to the shell.
    problems = [problem_of_call(shlex.split(re.split(r"\s[>&]", call)[0])) for call in calls]
    assert len(calls) >= 3
    assert problems == [None] * len(calls)


def installs_again() -> bool:
    return os.environ.get("TEST_NEWCOMER", "") not in ("", "0")


@pytest.mark.timeout(3600)
def test_the_commands_work_from_the_clone_on() -> None:
    if not installs_again():
        pytest.skip("installs everything again: set TEST_NEWCOMER=1")
    assert "33 webhooks verified" in NEWCOMER.record()


@pytest.mark.timeout(3600)
def test_the_commands_work_until_a_dashboard_has_its_figures() -> None:
    if not installs_again():
        pytest.skip("installs everything again: set TEST_NEWCOMER=1")
    if shutil.which("promtool") is None:
        pytest.skip("Prometheus is not installed (Debian's package is `prometheus`)")
    assert "0 expressions were refused" in METRICS.record()
