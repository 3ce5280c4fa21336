"""Keep a few child processes running, and end them in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchmill.worker.service_errors import ChildFailed

from .child_process import start_child_process, stop_child_process

_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
#: A child that ran this long was healthy: its next end starts with the shortest wait again.
_HEALTHY_AFTER_S = 60.0
_LOG_TAIL_LINES = 12
_TOLD_CHARS = 300
#: A log that is longer when its program starts is set aside as `.log.1`.
_MAX_LOG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One program to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    #: Seconds between SIGTERM and SIGKILL when it is stopped.
    stop_timeout_s: float


class SupervisedChild:
    """One program: started, and after an end started again, after a wait that doubles."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.num_restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0
        self._start_again_at_s: float | None = None
        self._backoff_s = _FIRST_BACKOFF_S

    @property
    def pid(self) -> int | None:
        """Process id, None while it is not running."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs or waits to be started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the program."""
        self._set_aside_long_log()
        self._process = start_child_process(
            self.spec.command,
            log_path=self.spec.log_path,
            death_signal=signal.SIGKILL,  # nobody is left to wait for an orderly end
            environment=self.spec.environment,
        )
        self._started_at_s = time.monotonic()
        self._start_again_at_s = None

    def check(self) -> str | None:
        """Notice an end, start again when it is time; a line to show where something happened."""
        if self._process is not None:
            exit_code = self._process.poll()
            return None if exit_code is None else self._note_end(exit_code)
        if self._start_again_at_s is not None and time.monotonic() >= self._start_again_at_s:
            self.num_restarts += 1
            self.start()
            return f"{self.spec.name} started again (pid {self.pid})"
        return None

    def stop(self) -> str | None:
        """End the program; a line to show where it had to be killed."""
        process, self._process, self._start_again_at_s = self._process, None, None
        self._stopping = process
        if process is None or stop_child_process(process, timeout_s=self.spec.stop_timeout_s):
            return None
        return f"{self.spec.name} did not end within {self.spec.stop_timeout_s:g} s and was killed"

    def kill(self) -> None:
        """End the program at once, and do not start it again."""
        self._start_again_at_s = None
        process = self._process or self._stopping
        if process is not None:
            process.kill()

    def log_tail(self, num_lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of its log."""
        lines = self.spec.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def _set_aside_long_log(self) -> None:
        path = self.spec.log_path
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))

    def _note_end(self, exit_code: int) -> str:
        now = time.monotonic()
        if now - self._started_at_s >= _HEALTHY_AFTER_S:
            self._backoff_s = _FIRST_BACKOFF_S
        wait_s, self._process = self._backoff_s, None
        self._start_again_at_s = now + wait_s
        self._backoff_s = min(2 * wait_s, _MAX_BACKOFF_S)
        return (
            f"{self.spec.name} ended with exit code {exit_code}; "
            f"starting it again in {wait_s:g} s; end of {self.spec.log_path}: "
            f"{self.log_tail(1)[:_TOLD_CHARS]}"
        )


class Supervisor:
    """Owns the children of `batchmill up`; they die with this process, whatever ends it."""

    def __init__(self, specs: Sequence[ChildSpec], say: Callable[[str], None]) -> None:
        self.children = [SupervisedChild(spec) for spec in specs]
        self._say = say

    def start(self) -> None:
        """Start all children, in order."""
        for child in self.children:
            child.start()

    def check(self) -> None:
        """Start again what ended. Call it several times a second."""
        for child in self.children:
            self._tell(child.check())

    def stop(self) -> None:
        """End the children in the order they were started, each only when the one before is gone.

        So the worker hands on its jobs first, and the deliverer can still send what that caused.
        """
        for child in self.children:
            self._tell(child.stop())

    def kill(self) -> None:
        """End all children at once. May be called from a signal handler."""
        for child in self.children:
            child.kill()

    def wait_until(self, ready: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Wait for a condition that the children bring about.

        Raises:
            ChildFailed: a child ended before, or the time was not enough; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            for child in self.children:
                if child.exit_code is not None:
                    raise ChildFailed(
                        f"{child.spec.name} ended with exit code {child.exit_code} while {what}; "
                        f"end of {child.spec.log_path}:\n{child.log_tail()}"
                    )
            if time.monotonic() > deadline:
                logs = ", ".join(str(child.spec.log_path) for child in self.children)
                raise ChildFailed(f"{what} took more than {timeout_s:g} s; see {logs}")
            time.sleep(0.1)

    def _tell(self, line: str | None) -> None:
        if line is not None:
            self._say(line)
