"""The newcomer's transcript has the commands of the script that records it, and they work."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from ..structure.public_interface import problem_of_call
from .newcomer import PAGE, STEPS, record

COMMANDS = [command.line for step in STEPS for command in step.commands]


def test_the_page_shows_the_commands_of_the_script_and_what_they_must_print() -> None:
    page = PAGE.read_text()
    shown = [line.removeprefix("$ ") for line in page.splitlines() if line.startswith("$ ")]
    assert shown == COMMANDS, "record it again: python tests/end_to_end/newcomer.py --write"
    for step in STEPS:
        section = page.partition(f"## {step.title}\n")[2].partition("\n## ")[0]
        missing = [each.expected for each in step.commands if each.expected not in section]
        assert missing == []


def test_its_commands_and_options_exist() -> None:
    calls = [found[1] for line in COMMANDS if (found := re.match(r"batchmill (.*)", line))]
    # A redirection belongs to the shell.
    problems = [problem_of_call(shlex.split(re.split(r"\s[>&]", call)[0])) for call in calls]
    assert len(calls) >= 5
    assert problems == [None] * len(calls)


@pytest.mark.timeout(3600)
def test_its_commands_work_from_the_clone_on() -> None:
    if os.environ.get("TEST_NEWCOMER", "") in ("", "0"):
        pytest.skip("installs everything again: set TEST_NEWCOMER=1")
    assert "33 webhooks verified" in record()
