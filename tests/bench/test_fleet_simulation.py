"""A small fleet of light workers on two shards, some of which die: every job ends once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SIMULATION = Path(__file__).parent / "fleet_simulation.py"


def test_a_fleet_ends_each_job_once_though_workers_die() -> None:
    options = ("--workers", "6", "--shards", "2", "--jobs", "40", "--tokens", "24")
    done = subprocess.run(
        [sys.executable, str(SIMULATION), *options, "--kill", "0.34", "--idle-s", "0.5"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "34% of the workers killed: 0 lost, 0 doubled" in done.stdout
    shards = dict(re.findall(r"'(s\d)': (\d+)", done.stdout))
    assert sorted(shards) == ["s0", "s1"]
    assert sum(map(int, shards.values())) == 40
    idle = re.search(r"idle: .* and ([\d.]+) calls per worker", done.stdout)
    assert idle is not None
    assert float(idle[1]) > 3  # heartbeats, sweeps and the rest, though no job ran
