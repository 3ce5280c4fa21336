"""`batchmill bulk` on a full disk: a clear error, no half table, and the same command resumes.

A limit on the size of files stands for the disk: every write beyond it fails in the same way.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
from functools import partial
from pathlib import Path

import pytest

from batchmill.producer.files.record import InputOptions
from batchmill.producer.files.source import RecordFile

from ..command_line import COMMAND
from ..conftest import Mill
from .bulk_files import read_lines, write_lines

NUM_ROWS = 40
#: Above that of the results of all rows, below that of a table that repeats their columns.
LIMIT_BYTES = 100_000


def run_limited(
    mill: Mill, *arguments: object, limit_bytes: int | None
) -> subprocess.CompletedProcess[str]:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit_bytes or 0,) * 2)
    return subprocess.run(
        [*COMMAND, "bulk", *map(str, arguments), "--max-tokens", "2", "--broker-url", mill.url],
        preexec_fn=None if limit_bytes is None else limit,
        env={**os.environ, "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "parquet"])
def test_a_table_that_does_not_fit_is_written_by_the_same_command_later(
    running_mill: Mill, tmp_path: Path, suffix: str
) -> None:
    for library in {"xlsx": ["openpyxl"], "parquet": ["pyarrow"]}.get(suffix, []):
        pytest.importorskip(library)
    noise = random.Random(7)
    rows = [f"{n},{noise.randbytes(10_000).hex()}" for n in range(NUM_ROWS)]
    source = tmp_path / "in.csv"
    source.write_text("\n".join(["id,noise", *rows, ""]))
    out = tmp_path / f"out.{suffix}"
    arguments = (source, "-o", out, "--template", "Row {id}")

    full = run_limited(running_mill, *arguments, limit_bytes=LIMIT_BYTES)
    assert full.returncode == 2, full.stdout + full.stderr
    assert f"{out} cannot be written: File too large; all results are in " in full.stderr
    assert "the same command writes the table again" in full.stderr
    assert "Traceback" not in full.stderr
    assert "Exception ignored" not in full.stderr
    journal = out.with_name(f"{out.name}.journal.jsonl")
    assert len(read_lines(journal)) == NUM_ROWS
    beside = {path.name for path in tmp_path.iterdir()}
    assert not out.exists()
    assert [name for name in beside if name.endswith(".part")] == []

    completed = running_mill.store.counts().totals["completed"]
    again = run_limited(running_mill, *arguments, limit_bytes=None)
    assert again.returncode == 0, again.stderr
    records = list(RecordFile(out, InputOptions()).records())
    assert [str((record.data or {})["id"]) for record in records] == [
        str(n) for n in range(NUM_ROWS)
    ]
    assert running_mill.store.counts().totals["completed"] == completed, "nothing runs twice"


def test_results_that_do_not_fit_are_collected_by_the_same_command_later(
    running_mill: Mill, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": str(n)} for n in range(NUM_ROWS)])
    out = tmp_path / "out.jsonl"
    full = run_limited(running_mill, source, "-o", out, limit_bytes=5_000)
    assert full.returncode == 2, full.stdout + full.stderr
    assert f"{out} cannot be written: File too large; free some space" in full.stderr
    assert "Traceback" not in full.stderr
    again = run_limited(running_mill, source, "-o", out, limit_bytes=None)
    assert again.returncode == 0, again.stderr
    assert {line["custom_id"] for line in read_lines(out)} == {
        f"line-{n + 1}" for n in range(NUM_ROWS)
    }
