"""Programs that tests fork from a prepared process behave as those that `subprocess` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ..support.prepared_python import PreparedPython
from ..support.processes import wait_until

#: A system that gives all programs of a server the same id, one after the other.
ONE_ID = """
import os
fork, waitpid = os.fork, os.waitpid
os.fork = lambda: 99 if fork() else 0
os.waitpid = lambda *a: (lambda pid, status: (99 if pid else 0, status))(*waitpid(*a))
"""
#: Shows the process of a test's server, and waits to be killed.
OWNER = """
import runpy, sys, time
PreparedPython = runpy.run_path(sys.argv[1])["PreparedPython"]
print(PreparedPython("")._server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def python() -> Iterator[PreparedPython]:
    with closing(PreparedPython("import json")) as prepared:
        yield prepared


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("raise ValueError('broken')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_a_program_ends_with_its_own_status(
    python: PreparedPython, tmp_path: Path, program: str, status: int
) -> None:
    log = tmp_path / "log"
    started = python.start("-c", program, environment=os.environ, log=log)
    assert started.wait(timeout=60) == started.returncode == status
    assert ("ValueError: broken" in log.read_text()) is (status == 1)


def test_a_program_has_its_own_environment_folder_and_threads(
    python: PreparedPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = (
        "import json, os, threading; thread = threading.Thread(target=lambda: print(json.dumps("
        "[dict(os.environ), os.getcwd(), os.getpid()]))); thread.start(); thread.join()"
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    kept |= {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    started = python.start("-c", program, environment={**kept, "A": "1"}, log=tmp_path / "log")
    assert started.wait(timeout=60) == 0
    environment, folder, pid = json.loads((tmp_path / "log").read_text())
    assert (environment, folder, pid) == ({**kept, "A": "1"}, str(tmp_path), started.pid)


def test_a_program_that_is_killed_has_the_signal_as_its_status(
    python: PreparedPython, tmp_path: Path
) -> None:
    program = "import time; time.sleep(600)"
    started = python.start("-c", program, environment=os.environ, log=tmp_path / "log")
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(timeout=0)
    started.kill()
    assert started.wait(timeout=60) == -signal.SIGKILL


def test_programs_that_get_the_same_id_have_statuses_of_their_own(tmp_path: Path) -> None:
    with closing(PreparedPython(ONE_ID)) as python:
        for status in (3, 4):
            program = f"import sys; sys.exit({status})"
            log = tmp_path / str(status)
            started = python.start("-c", program, environment=os.environ, log=log)
            assert started.wait(timeout=60) == status


@pytest.mark.parametrize("variable", ["TZ", "LC_ALL", "PYTHONHASHSEED", "KOMBU_LOG_DEBUG"])
def test_what_is_read_at_the_start_of_a_process_starts_one(
    python: PreparedPython, tmp_path: Path, variable: str
) -> None:
    environment = {**os.environ, variable: "1"}
    started = python.start("-c", "pass", environment=environment, log=tmp_path / "log")
    assert isinstance(started, subprocess.Popen)
    assert started.wait(timeout=60) == 0


def test_a_server_ends_with_a_test_process_that_is_killed() -> None:
    file = sys.modules[PreparedPython.__module__].__file__
    command = [sys.executable, "-c", OWNER, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        assert Path(f"/proc/{server}").exists()
        owner.kill()
    wait_until(lambda: _has_ended(server), "the end of the server")


def _has_ended(pid: int) -> bool:
    try:  # a process that nobody waits for stays as a zombie where nothing adopts it
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
