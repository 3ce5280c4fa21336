"""Drain: how a worker that shuts down, warm or cold, gives its jobs back before it ends.

1. `WorkerRuntime.begin_drain` closes the intake gate and lets the engine end after its step.
2. The jobs' last tokens are written, and the jobs go back to the head of their queues.
3. Celery's event loop keeps running here, because it sends the acknowledgements and events of 2.
4. `WorkerRuntime.finish_drain` ends the threads and deletes the heartbeat.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from redis.exceptions import RedisError

from batchmill.worker.jobs.runtime import WorkerRuntime

_log = structlog.stdlib.get_logger("batchmill.drain")
#: Longest iteration of the event loop while draining.
_LOOP_INTERVAL_S = 0.02


def drain_worker(runtime: WorkerRuntime, hub: Any, timeout_s: float) -> None:
    """Give all jobs back within a time, and report it to Celery.

    Args:
        runtime: of the worker.
        hub: kombu's event loop; None if the worker never got one.
        timeout_s: seconds that the drain may take.
    """
    deadline = time.monotonic() + timeout_s
    runtime.begin_drain()
    if hub is not None:
        _run_event_loop(runtime, hub, deadline)
    try:
        runtime.finish_drain(max(0.0, deadline - time.monotonic()))
    except RedisError as error:
        _log.warning("drain_without_redis", error=type(error).__name__)
    if hub is not None:
        _run_event_loop(runtime, hub, time.monotonic())  # sends the last events


def _run_event_loop(runtime: WorkerRuntime, hub: Any, deadline: float) -> None:
    """Run the event loop until the worker is drained or the deadline passes."""
    loop = hub.create_loop()
    while True:
        is_last = runtime.is_drained() or time.monotonic() >= deadline
        hub.call_later(_LOOP_INTERVAL_S, do_nothing)  # bounds the wait of this iteration
        try:
            next(loop)
        except StopIteration:
            loop = hub.create_loop()
        except Exception as error:
            # The broker is gone. The record writer has its own connection and keeps retrying.
            _log.warning("event_loop_ended", error=type(error).__name__)
            return
        if is_last:
            return


def do_nothing() -> None:
    """Serve as a callback that only wakes the event loop."""
