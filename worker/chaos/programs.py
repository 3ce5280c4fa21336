"""Workers and deliverers of a run: started again when they end, and found when they end alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchmill.worker.local.child_process import start_child_process, stop_child_process

#: In the command line of an engine's process.
_ENGINE_MODULE = b"batchmill.worker.engine_host.process"
_LOG_TAIL_CHARS = 600


@dataclass(frozen=True, slots=True)
class SelfInflictedEnd:
    """A program that ended although no fault had ended it."""

    program: str
    exit_code: int
    log_tail: str


class Program:
    """One worker or deliverer, which is started again whenever it ends."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log_path: Path
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._must_end = False

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def engine_pids(self) -> list[int]:
        """Process ids of its engine; empty while there is none."""
        return [] if self.pid is None else _engines_of(self.pid)

    def start(self) -> None:
        """Start it. Call it in the main thread."""
        self._must_end = False
        self._process = start_child_process(
            self._command,
            log_path=self.log_path,
            death_signal=signal.SIGKILL,
            environment=self._environment,
        )

    def signal(self, number: int, *, ends: bool = False) -> None:
        """Send a signal; `ends` says that the program may end by it."""
        if self._process is not None and self._process.poll() is None:
            self._must_end = self._must_end or ends
            self._process.send_signal(number)

    def restart_if_ended(self) -> SelfInflictedEnd | None:
        """Start it again if it has ended; return its end if no fault had caused it."""
        if self._process is None or (exit_code := self._process.poll()) is None:
            return None
        end = None if self._must_end else SelfInflictedEnd(self.name, exit_code, self._log_tail())
        self.start()
        return end

    def wait_until_ended(self, timeout_s: float) -> None:
        """Wait for its end after a signal; kill it if that takes too long."""
        if self._process is not None:
            stop_child_process(self._process, timeout_s=timeout_s)

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-_LOG_TAIL_CHARS:]


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to processes; those that have ended are left out."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _engines_of(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if _ENGINE_MODULE in command:
            found.append(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return [
            int(child)
            for thread in threads
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
        ]
    except OSError:
        return []  # it has ended meanwhile
