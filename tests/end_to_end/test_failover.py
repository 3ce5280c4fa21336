"""A short run of `batchmill bench failover`, which keeps every promise."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ..support.processes import CLI


@pytest.mark.timeout(600)  # three programs and five servers start one after another
def test_a_failover_that_loses_writes_loses_no_job_and_doubles_none() -> None:
    arguments = ("bench", "failover", "--seed", "3", "--jobs", "24", "--kills", "1", "--json")
    done = subprocess.run(
        [sys.executable, *CLI, *arguments], capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["broken"] == []
    assert report["jobs"] == 27
    # The replica lacked something: jobs that came late, or ends.
    assert report["resubmitted"] + report["repeated_ends"] > 0
