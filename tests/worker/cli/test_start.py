"""The start of the program as process 1 of a container."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")


@pytest.fixture
def slow_imports(tmp_path: Path) -> Path:
    """A folder with a `typer` that takes forever to import, and a file that shows the attempt."""
    (tmp_path / "typer.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path(__file__).with_name('importing').touch()\n"
        "time.sleep(600)\n"
    )
    return tmp_path


@pytest.mark.parametrize("command", ["worker", "deliver"])
def test_sigterm_ends_process_1_while_it_imports(command: str, slow_imports: Path) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("this user may not make a process namespace")
    program = [sys.executable, "-m", "batchmill.worker.cli", command]
    shell = subprocess.Popen(
        # The process that unshare starts is process 1 in there, and its only child out here.
        [*NAMESPACE, *program],
        env={"PYTHONPATH": str(slow_imports), "PYTHONSAFEPATH": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (slow_imports / "importing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        subprocess.run(["kill", "-TERM", *children], check=True)

        assert shell.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        shell.kill()
        shell.wait()
