"""A program outlives its terminal, and its tables suit terminals and pipes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from batchmill.worker.terminal import print_table

PROGRAM = """
import sys
from batchmill.worker.terminal import may_lose_terminal
sys.stdin.readline()
for number in range(3):
    with may_lose_terminal():
        print("a line", flush=True)
"""


def test_a_program_whose_terminal_is_closed_ends_in_order() -> None:
    terminal, end = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=end, stderr=subprocess.PIPE
    )
    os.close(end)
    os.close(terminal)
    _, errors = program.communicate(b"go\n", timeout=60)
    assert (program.returncode, errors) == (0, b"")


def test_a_table_in_a_pipe_has_a_line_per_row_unless_it_holds_sentences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "a sentence of many words, " * 20
    print_table("Title", ("name", "text"), [("first", long), ("second", "short")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Title", "name", "first", "second"]
    assert [line for line in lines if line != line.rstrip()] == []
    print_table("", ("name", "text"), [("first", long)], has_sentences=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert " ".join(" ".join(lines).split()).endswith(long.strip())
