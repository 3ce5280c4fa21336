"""Flower ends at SIGTERM whenever it comes."""

from __future__ import annotations

from ..support.processes import run

#: Runs Flower, and sends SIGTERM to it while the first thread of its pool starts.
_PROGRAM = """
import os, signal, sys, threading
from batchmill.worker.monitor.server import run_flower

start = threading.Thread.start

def start_and_terminate(thread):
    start(thread)
    if thread.name.startswith("ThreadPoolExecutor"):
        threading.Thread.start = start
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread.start = start_and_terminate
run_flower(sys.argv[1], ["--port=0"])
assert threading.Thread.start is start, "no thread was started"
print("ended")
"""


def test_flower_ends_if_sigterm_comes_while_a_thread_of_its_pool_starts(redis_url: str) -> None:
    assert "ended" in run("-c", _PROGRAM, redis_url, environment={})
