"""A short run of `batchmill bench chaos`, which keeps every promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..support.processes import CLI

#: Faults that are over within a second, so that many fit into a short run.
QUICK = (
    *("kill_worker", "kill_engine", "kill_deliverer", "freeze_short", "term_worker"),
    *("redis_kill", "receiver_errors"),
)


def test_jobs_under_quick_faults_end_once_with_the_right_text(tmp_path: Path) -> None:
    arguments = ("bench", "chaos", "--jobs", "80", "--seed", "21", "--duration-s", "6", "--json")
    options = (
        "--faults",
        ",".join(QUICK),
        "--lease-s",
        "2",
        "--step-ms",
        "15",
        "--keep-logs",
        str(tmp_path),
    )
    done = subprocess.run(
        [sys.executable, *CLI, *arguments, *options], capture_output=True, text=True, timeout=120
    )

    report = json.loads(done.stdout)
    assert report["broken"] == [], done.stderr
    assert done.returncode == 0
    assert report["jobs"] == 80
    assert len(report["faults"]) >= 4
