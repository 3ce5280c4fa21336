"""The output file of a bulk run: its own lines are found again, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchmill.producer.bulk.output import DoneLines, DurableLines, line_id
from batchmill.producer.errors import BulkFileError

IDENTITY, OTHER = "a" * 64, "b" * 64


def line_of(identity: str, number: int) -> bytes:
    """Return a line as a run writes it."""
    line = {"id": line_id(identity, number), "custom_id": "x", "response": None}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


WHOLE = line_of(IDENTITY, 1)


def test_a_second_command_on_the_same_output_is_refused(tmp_path: Path) -> None:
    with DurableLines(tmp_path / "out"), pytest.raises(BulkFileError, match="another bulk"):
        DurableLines(tmp_path / "out")


def test_a_file_with_two_results_for_a_record_is_refused(tmp_path: Path) -> None:
    line = '{"id":"batch_req_' + "a" * 16 + '_1"}\n'
    (tmp_path / "out").write_text(2 * line)
    with DurableLines(tmp_path / "out") as file, pytest.raises(BulkFileError, match="line 2"):
        file.recover("a" * 64, DoneLines(3))


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1}\n',
        b'{"a":1}',
        b"hello\n",
        b"[1,2,3]\n",
        b"{",
        b'{"id":"batch_req_',
        b"\n",
        bytes(200_000),
        b'{"id": "a"}\n',
        b'{"id":"batch_req_1"}\n',
        line_of(OTHER, 1),
        line_of(OTHER, 1)[:40],
        WHOLE + b"hello",
        WHOLE + b"hello\n",
        WHOLE + WHOLE[:40] + b"\n",
        WHOLE + line_of(OTHER, 2)[:40],
        WHOLE + b"\n",
        WHOLE + bytes(100),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "out").write_bytes(content)
    with DurableLines(tmp_path / "out") as file, pytest.raises(BulkFileError, match=r"line [12]"):
        file.recover(IDENTITY, DoneLines(3))
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_a_torn_line_is_removed_at_every_length(tmp_path: Path, length: int) -> None:
    torn = line_of(IDENTITY, 2)[:length]
    (tmp_path / "out").write_bytes(WHOLE + torn)
    with DurableLines(tmp_path / "out") as file:
        assert file.recover(IDENTITY, DoneLines(3)) == 1
    assert (tmp_path / "out").read_bytes() == WHOLE


def test_a_torn_first_line_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(WHOLE[:40])
    with DurableLines(tmp_path / "out") as file:
        assert file.recover(IDENTITY, DoneLines(3)) == 0
    assert (tmp_path / "out").read_bytes() == b""
