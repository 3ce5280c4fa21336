"""Commands that wait say what for; after Ctrl-C, they say how to go on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..command_line import COMMAND, call

NOTE_LIMIT_S = 60.0


def wait_for_text(path: Path, text: str) -> None:
    """Return when a file holds a text."""
    deadline = time.monotonic() + NOTE_LIMIT_S
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("command", ["submit", "result", "stream"])
def test_a_wait_tells_the_job_and_why_it_waits_and_how_to_go_on(
    redis_url: str, tmp_path: Path, command: str
) -> None:
    broker = ["--broker-url", redis_url]
    if command == "submit":
        words = ["submit", "hi", "--model", "gpt-4", "--wait", *broker]
        job_id = ""
    else:
        job_id = call("submit", "hi", "--model", "gpt-4", *broker).stdout.strip()
        words = [command, job_id, *broker]
    told = tmp_path / "stderr"
    with told.open("w") as stderr:
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=stderr)
        try:
            if command == "submit":
                wait_for_text(told, "submitted gen_")
                job_id = told.read_text().split()[1]
            wait_for_text(told, f"note: {job_id} queued")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
            process.communicate()
    text = told.read_text()
    assert "no worker serves gpt-4: no worker runs" in text
    assert f"`batchmill result {job_id}` waits for it" in text
    assert "Traceback" not in text


def test_the_end_of_the_time_says_why_and_notes_are_json_if_asked(redis_url: str) -> None:
    answer = call(
        *("submit", "hi", "--model", "gpt-4", "--wait", "--timeout-s", "0.1", "--json"),
        *("--broker-url", redis_url),
    )
    assert answer.returncode == 7
    note, error = map(json.loads, answer.stderr.splitlines())
    assert note["note"]["id"].startswith("gen_")
    assert "no worker serves gpt-4" in error["error"]["message"]
