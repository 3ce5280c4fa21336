"""The supervisor with real child processes: restarts, waits, order and death of the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from batchmill.worker.errors import EXIT_CONFIG
from batchmill.worker.local.supervisor import ChildSpec, Supervisor
from batchmill.worker.service_errors import ChildFailed, ChildMisconfigured

from .waiting import wait_until

SLEEPER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\nwhile True: signal.pause()"
)
PARENT = """
import sys, time
from pathlib import Path
from batchmill.worker.errors import EXIT_CONFIG
from batchmill.worker.local.supervisor import ChildSpec, Supervisor
program, folder = sys.argv[1], Path(sys.argv[2])
spec = ChildSpec("child", (sys.executable, "-c", program), {}, folder / "log", 5.0)
supervisor = Supervisor([spec], print)
supervisor.start()
print(supervisor.children[0].pid, flush=True)
time.sleep(60)
"""


def spec(
    folder: Path, program: str, name: str = "child", stop_timeout_s: float = 30.0
) -> ChildSpec:
    command = (sys.executable, "-c", program)
    return ChildSpec(name, command, dict(os.environ), folder / f"{name}.log", stop_timeout_s)


def is_up(folder: Path, name: str = "child") -> bool:
    log = folder / f"{name}.log"
    return log.exists() and "up" in log.read_text()


def test_child_that_died_is_restarted_after_a_wait(tmp_path: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor([spec(tmp_path, SLEEPER)], lines.append)
    supervisor.start()
    child = supervisor.children[0]
    first = child.pid
    assert first is not None
    try:
        os.kill(first, signal.SIGKILL)
        died_at = time.monotonic()

        def has_restarted() -> bool:
            supervisor.restart_ended_children()
            return child.num_restarts == 1

        wait_until(has_restarted, "restarted")
        assert time.monotonic() - died_at >= 0.9
        assert child.pid not in (None, first)
    finally:
        supervisor.stop()
    assert "exit code -9" in lines[0]
    assert "restarted" in lines[1]


def test_wait_doubles_while_a_child_keeps_dying(tmp_path: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor([spec(tmp_path, "raise SystemExit(3)")], lines.append)

    def has_died_twice() -> bool:
        supervisor.restart_ended_children()
        return len(lines) >= 3

    supervisor.start()
    try:
        wait_until(has_died_twice, "it died twice", 15)
    finally:
        supervisor.stop()
    assert "exit code 3; restarting it in 1 s" in lines[0]
    assert "exit code 3; restarting it in 2 s" in lines[2]


def test_children_are_stopped_in_order_each_after_the_previous_one(tmp_path: Path) -> None:
    first = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    print('second is up:', open(sys.argv[1]).read().strip(), flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True)\n"
        "while True: signal.pause()"
    )
    specs = [spec(tmp_path, first, "first"), spec(tmp_path, SLEEPER, "second")]
    specs[0] = ChildSpec(
        "first",
        (*specs[0].command, str(tmp_path / "second.log")),
        specs[0].environment,
        specs[0].log_path,
        5.0,
    )
    supervisor = Supervisor(specs, print)
    supervisor.start()
    wait_until(lambda: is_up(tmp_path, "first") and is_up(tmp_path, "second"), "both are up")
    supervisor.stop()
    assert "second is up: up" in (tmp_path / "first.log").read_text()
    assert [child.pid for child in supervisor.children] == [None, None]


def test_child_that_ignores_sigterm_is_killed_and_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor([spec(tmp_path, STUBBORN, stop_timeout_s=0.2)], lines.append)
    supervisor.start()
    wait_until(lambda: is_up(tmp_path), "it is up")
    supervisor.stop()
    assert lines == ["child did not end within 0.2 s and was killed"]


def test_failed_start_is_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    program = "import sys; sys.exit('the model is not there')"
    supervisor = Supervisor([spec(tmp_path, program)], print)
    supervisor.start()
    with pytest.raises(ChildFailed, match=r"exit code 1(?s:.*)the model is not there"):
        supervisor.wait_until(lambda: False, activity="starting", timeout_s=60)
    supervisor.stop()


def test_start_that_takes_too_long_names_the_logs(tmp_path: Path) -> None:
    supervisor = Supervisor([spec(tmp_path, SLEEPER)], print)
    supervisor.start()
    try:
        with pytest.raises(ChildFailed, match=r"starting took more than 0.1 s; see .*child\.log"):
            supervisor.wait_until(lambda: False, activity="starting", timeout_s=0.1)
    finally:
        supervisor.stop()


@pytest.mark.parametrize("program", [SLEEPER, STUBBORN], ids=["sleeper", "stubborn"])
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path, program: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: (tmp_path / "log").exists() and "up" in (tmp_path / "log").read_text(), "up")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.is_running() or child.status() == "zombie", "it followed")


def test_a_child_with_wrong_settings_is_not_restarted_in_the_first_start(tmp_path: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor([spec(tmp_path, f"raise SystemExit({EXIT_CONFIG})")], lines.append)
    supervisor.start()
    child = supervisor.children[0]
    try:
        wait_until(lambda: child.exit_code is not None, "ended")
        with pytest.raises(ChildMisconfigured, match="cannot start"):
            supervisor.restart_ended_children(in_first_start=True)
        assert not lines
    finally:
        supervisor.stop()
