"""Scheduling, requests and outputs work without torch."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["torch"] = None      # any import of it fails now
import batchmill.engine as engine
from batchmill.engine import EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.request.request import Request
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.lifecycle.stats import StatsCounter
from batchmill.engine.text.stop_strings import StopStrings
from batchmill.engine.lifecycle.output_tracker import OutputTracker

scheduler = Scheduler(BlockPool(8, 4), max_num_seqs=2, max_num_batched_tokens=4)
scheduler.add(Request("a", [1, 2, 3], SamplingParams(), seed=0, max_num_tokens=5))
print(scheduler.schedule().num_tokens)
"""


def test_scheduling_runs_if_torch_cannot_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "3", done.stderr
