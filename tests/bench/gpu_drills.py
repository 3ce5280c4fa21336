"""What an engine's memory plan promises, and what a GPU does after a process broke it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_floors import Work
from gpu_models import make_engine, named_shape, random_model
from gpu_recipes import generate_s, give_back
from gpu_report import Bench

_GIB = 1024**3
#: Loggers whose lines say what the engine planned, and what its graphs took.
_PLANNERS = "batchmill.engine.execution"
#: Seconds until an ended process must have given its memory back.
_FREED_S = 15.0
#: Memory that may be missing afterwards: the driver keeps some, and rounds.
_MISSING_GIB = 0.1
#: How each kind of process ends.
_EXIT_CODES = {"exits": 0, "killed": -signal.SIGKILL, "broken": 70}
#: What has to be true after every drill.
REQUIRED = ("is_decoding", "has_ended", "ended_as_told", "is_freed", "computes_here")
_CHILD = Path(__file__).with_name("gpu_drill_child.py")


def memory_plan(bench: Bench) -> None:
    """Compare the engine's memory plan with what the driver counts after the largest steps.

    `over_limit_gib` is what the process and all others hold beyond `gpu_memory_utilization`.
    """
    config = named_shape("Qwen3-8B", toy=bench.toy)
    dtype = torch.float32 if bench.toy else torch.bfloat16
    before_gib = _held_gib(bench)
    model = random_model(config, bench.device, dtype=dtype)
    with _planned() as lines:
        engine = make_engine(model, toy=bench.toy)
    started_gib = _held_gib(bench)
    # Full steps of prompts, and decodes of every size.
    work = Work([40] * 8, [8] * 8)
    if not bench.toy:
        work = Work([1000] * 256, list(range(32, 288)))
    generate_s(engine, work, config.vocab_size)
    limit_gib = engine.config.gpu_memory_utilization * _total_gib(bench)
    served_gib = _held_gib(bench)
    bench.line(
        "memory plan",
        plan=lines,
        held_before_gib=before_gib,
        held_started_gib=started_gib,
        held_served_gib=served_gib,
        limit_gib=limit_gib,
        over_limit_gib=served_gib - limit_gib,
        kv_blocks=engine.stats().num_blocks,
        out_of_memory=engine.stats().num_out_of_memory,
    )
    if served_gib > limit_gib and not bench.toy:
        raise AssertionError(f"{served_gib:.2f} GiB are held, {limit_gib:.2f} may be used")
    del engine, model
    give_back(bench)


@contextmanager
def _planned() -> Iterator[list[str]]:
    """Collect what the engine logs about memory while it starts."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(_PLANNERS), Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def crash_drill(bench: Bench) -> None:
    """End processes that use the GPU in three ways, and measure when their memory is free again.

    `exits`: its requests finish. `killed`: kill -9 during a step. `broken`: a kernel fails an
    assertion, which makes the device unusable for its process; the engine must raise, and the
    process must end. This process's device must still compute each time.
    """
    give_back(bench)
    for how in ("exits", "killed", "broken"):
        bench.check_time(0 if bench.toy else 15)
        values = _drill(bench, how)
        bench.line("crash drill", how=how, **values)
        problems = [name for name in REQUIRED if not values[name]]
        if problems:
            raise AssertionError(f"{how}: not {', '.join(problems)}: {values}")


def _drill(bench: Bench, how: str) -> dict[str, Any]:
    """Start a process with an engine, end it, and return what happened."""
    free_gib = _free_gib(bench)
    arguments = [sys.executable, str(_CHILD), how, *(["--toy"] if bench.toy else [])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            ready = json.loads(child.stdout.readline() or "{}")  # nothing if it has failed
            held_gib = free_gib - _free_gib(bench)
            started_at_s = time.monotonic()
            if how == "killed":
                child.kill()
            child.wait(timeout=_FREED_S)
            rest = child.stdout.read()
            end_s = time.monotonic() - started_at_s
        except subprocess.TimeoutExpired:
            child.kill()
            rest, end_s = "", None
    is_freed = _wait(lambda: _free_gib(bench) >= free_gib - _MISSING_GIB)
    last = rest.strip().splitlines()[-1:]
    return {
        "is_decoding": "decodes" in ready,
        "said": json.loads(last[0]) if last else None,
        "exit_code": child.returncode,
        "ended_as_told": child.returncode == _EXIT_CODES[how],
        "has_ended": end_s is not None,
        "end_s": end_s,
        "held_gib": held_gib,
        "is_freed": is_freed,
        "free_s": time.monotonic() - started_at_s,
        "computes_here": bool(torch.ones(8, device=bench.device).sum() == 8),
    }


def _wait(is_true: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + _FREED_S
    while not is_true():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.05)
    return True


def _free_gib(bench: Bench) -> float:
    if bench.device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info(bench.device)[0]) / _GIB


def _total_gib(bench: Bench) -> float:
    if bench.device.type != "cuda":
        return 0.0
    return float(torch.cuda.mem_get_info(bench.device)[1]) / _GIB


def _held_gib(bench: Bench) -> float:
    return _total_gib(bench) - _free_gib(bench)
