"""`batchmill demo` from end to end, with the stub engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from batchmill.worker.demo.prompts import demo_prompts

COMMAND = [sys.executable, "-m", "batchmill.worker.cli", "demo"]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bm-") as name:
        yield Path(name)


def run_demo(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"BATCHMILL_ENGINE": "stub", "TMPDIR": str(folder), "COLUMNS": "160", **settings}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **environment},
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes of a demo in this folder: its broker, and all that know its URL."""
    found = []
    for process in psutil.process_iter():
        try:
            about = " ".join(process.cmdline()) + process.environ().get("BATCHMILL_BROKER_URL", "")
        except psutil.Error:
            continue
        if str(folder) in about and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_demo_prompts_are_33_chats_of_different_lengths_and_kinds() -> None:
    prompts = demo_prompts()
    assert len(prompts) == len({(prompt.kind, prompt.shown) for prompt in prompts}) == 33
    assert len({prompt.max_tokens for prompt in prompts}) >= 4
    assert len({prompt.kind for prompt in prompts}) >= 5
    kinds = [prompt.kind for prompt in prompts]
    assert kinds == sorted(kinds, key=kinds.index)  # a heading appears once
    for prompt in prompts:
        assert prompt.shown in prompt.messages[-1]["content"]
        assert prompt.messages[-1]["role"] == "user"


def test_demo_completes_every_job_and_verifies_every_webhook(folder: Path) -> None:
    answer = run_demo(folder, "--time-limit-s", "120")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    text = answer.stdout
    assert "passed: 33 of 33 jobs completed, 33 webhooks verified" in text
    assert re.search(r"gateway +http://127\.0\.0\.1:\d+/v1", text)
    assert re.search(r"flower +http://127\.0\.0\.1:\d+", text)
    assert re.search(r"webhook-signature: v1,\S+", text)
    assert '"type":"generation.completed"' in text
    assert "signature verified: generation.completed" in text
    for figure in ("output tokens", "tokens/s", "mean batch size", "time to first token"):
        assert re.search(rf"{figure}.* [\d.]+", text), figure
    assert "not measured" not in text
    assert "SmolLM2-135M-Instruct" in text  # the size of the model is said
    for prompt in demo_prompts():
        assert text.count(f"\n{prompt.kind}\n") == 1
        assert f"  {prompt.shown}"[:60] in text
    assert text.count("\n    -> ") == 33
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


@pytest.mark.nightly
def test_demo_with_failed_jobs_lists_them_and_keeps_its_logs(folder: Path) -> None:
    answer = run_demo(folder, "--json", "--no-flower", "--max-model-len", "80")
    assert answer.returncode == 1
    data = json.loads(answer.stdout)
    assert data["passed"] is False
    num_failed = len(data["failures"])
    assert 0 < num_failed < 33
    assert all("context_length_exceeded" in failure for failure in data["failures"])
    assert data["figures"]["num_jobs"] == len(data["answers"]) == 33
    assert data["figures"]["num_completed"] == 33 - num_failed
    assert data["figures"]["tokens_per_s"] > 0
    assert data["num_webhooks_verified"] == 33  # failed jobs send one, too
    assert "webhook-signature" in data["webhook"]["headers"]
    assert "logs are kept in" in answer.stderr
    [kept] = folder.iterdir()
    assert (kept / "logs" / "worker.log").stat().st_size > 0
    assert processes_of(folder) == []


def test_demo_ends_at_its_time_limit(folder: Path) -> None:
    slow = '{"load_time_s": 60}'  # longer than the limit on any machine
    answer = run_demo(folder, "--json", "--no-flower", "--time-limit-s", "1", BATCHMILL_STUB=slow)
    assert answer.returncode == 1
    error = json.loads(answer.stderr.splitlines()[-1])["error"]
    assert error["code"] == "demo_failed"
    assert "more than" in error["message"]
    assert processes_of(folder) == []


def test_demo_whose_worker_cannot_start_says_why(folder: Path) -> None:
    answer = run_demo(folder, "--no-flower", "--json", BATCHMILL_STUB='{"no_such_field": 1}')
    assert answer.returncode == 8
    error = json.loads(answer.stderr.splitlines()[-1])["error"]
    assert error["code"] == "invalid_settings"
    assert "the worker cannot start: BATCHMILL_STUB" in error["message"]


def test_interrupted_demo_leaves_nothing_running(folder: Path) -> None:
    environment = {"BATCHMILL_ENGINE": "stub", "TMPDIR": str(folder)}
    environment["BATCHMILL_STUB"] = '{"step_time_s": 0.5}'
    process = subprocess.Popen(
        [*COMMAND, "--no-flower"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(processes_of(folder)) < 4:  # broker, worker, its engine, deliverer
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
