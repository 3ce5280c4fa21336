"""The log of a child: its failure, its new lines, the phases of a start, and rotation."""

from __future__ import annotations

import json
from pathlib import Path

from batchmill.worker.local import child_log
from batchmill.worker.local.child_log import ChildLog, rotate_long_log
from batchmill.worker.local.start_phases import StartPhases


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def event(**fields: str) -> str:
    return json.dumps(fields)


def test_a_failure_is_the_last_critical_line_since_the_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, event(level="critical", event="engine_cannot_start", reason="an old one"))
    log = ChildLog(path)
    assert log.failure() == "it wrote nothing to its log"
    append(path, "SecurityWarning: superuser")
    assert log.failure() == "SecurityWarning: superuser"
    append(path, "Error: invalid settings: BATCHMILL_LEASE_S", "[1]", "1")
    assert log.failure() == "invalid settings: BATCHMILL_LEASE_S"
    append(path, event(level="critical", event="engine_cannot_start", reason="max_model_len is 9"))
    append(path, event(level="warning", event="engine_killed"))
    assert log.failure() == "max_model_len is 9"


def test_phases_follow_the_log_and_ignore_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    phases = StartPhases(ChildLog(path))
    assert phases.update() == "starting the worker"
    append(path, "no json", event(event="engine_started"))
    assert phases.update() == "starting the engine"
    append(path, event(event="reading weights", phase="loading the model: 0%"), event(event="x"))
    with path.open("a") as file:  # half a line
        file.write('{"phase": "loading the')
    assert phases.update() == "loading the model: 0%"
    with path.open("a") as file:
        file.write(' model: 40%"}\n')
    assert phases.update() == "loading the model: 40%"
    assert phases.line == "loading the model: 40% (0 s)"


def test_a_long_log_is_rotated_under_a_program_that_goes_on_writing(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * child_log.MAX_LOG_BYTES)
        rotate_long_log(path)
        assert path.stat().st_size == child_log.MAX_LOG_BYTES
        writer.write(b"y\n")
        log = ChildLog(path)
        rotate_long_log(path)
        assert path.stat().st_size == 0
        assert path.with_suffix(".log.1").stat().st_size == child_log.MAX_LOG_BYTES + 2
        writer.write(b"z\n")
        assert log.new_lines() == ["z"]
    rotate_long_log(tmp_path / "missing.log")
