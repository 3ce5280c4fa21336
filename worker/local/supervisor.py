"""Keeps child processes running, restarts those that end, and stops them in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchmill.worker.errors import EXIT_CONFIG
from batchmill.worker.service_errors import ChildFailed, ChildMisconfigured

from .child_log import ChildLog, rotate_long_log
from .child_process import start_child_process, stop_child_process

_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
#: A child that ran this long was healthy: the wait before its next restart is the shortest again.
_HEALTHY_AFTER_S = 60.0
_LOG_TAIL_LINES = 12
#: Longest part of a reason that is shown while the program is restarted.
_MAX_SHOWN_CHARS = 300
#: Seconds between two looks at the lengths of logs.
_ROTATION_INTERVAL_S = 10.0


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
    """One program, restarted whenever it ends, after a wait that doubles."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.num_restarts = 0
        #: What it has written since its last start.
        self.log = ChildLog(spec.log_path)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0
        self._start_again_at_s: float | None = None
        self._backoff_s = _FIRST_BACKOFF_S

    @property
    def pid(self) -> int | None:
        """Process id, or None while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs or waits to be restarted."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the program."""
        rotate_long_log(self.spec.log_path)
        self.log = ChildLog(self.spec.log_path)
        self._process = start_child_process(
            self.spec.command,
            log_path=self.spec.log_path,
            death_signal=signal.SIGKILL,  # no parent is left to wait for an orderly end
            environment=self.spec.environment,
        )
        self._started_at_s = time.monotonic()
        self._start_again_at_s = None

    def restart_if_ended(self, *, in_first_start: bool = False) -> str | None:
        """Notice an end, and restart the program when it is time. Return a line about the event.

        Raises:
            ChildMisconfigured: in the first start, it ended because of its settings or its model.
        """
        if self._process is not None:
            exit_code = self._process.poll()
            if in_first_start:
                self.check_settings(exit_code)
            return None if exit_code is None else self._note_end(exit_code)
        if self._start_again_at_s is not None and time.monotonic() >= self._start_again_at_s:
            self.num_restarts += 1
            self.start()
            return f"{self.spec.name} restarted (pid {self.pid})"
        return None

    def stop(self) -> str | None:
        """End the program. Return a line to show if it had to be killed."""
        process, self._process, self._start_again_at_s = self._process, None, None
        self._stopping = process
        if process is None or stop_child_process(process, timeout_s=self.spec.stop_timeout_s):
            return None
        return f"{self.spec.name} did not end within {self.spec.stop_timeout_s:g} s and was killed"

    def kill(self) -> None:
        """Kill the program, and do not restart it."""
        self._start_again_at_s = None
        process = self._process or self._stopping
        if process is not None:
            process.kill()

    def check_settings(self, exit_code: int | None) -> None:
        """Check that an exit code does not speak of wrong settings or a wrong model.

        Raises:
            ChildMisconfigured: it does; the message is the program's own.
        """
        if exit_code == EXIT_CONFIG:
            raise ChildMisconfigured(
                f"the {self.spec.name} cannot start: {self.log.failure()} "
                f"(log: {self.spec.log_path})"
            )

    def log_tail(self, num_lines: int = _LOG_TAIL_LINES) -> str:
        """Return the last lines of its log."""
        lines = self.spec.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def _note_end(self, exit_code: int) -> str:
        now = time.monotonic()
        if now - self._started_at_s >= _HEALTHY_AFTER_S:
            self._backoff_s = _FIRST_BACKOFF_S
        wait_s, self._process = self._backoff_s, None
        self._start_again_at_s = now + wait_s
        self._backoff_s = min(2 * wait_s, _MAX_BACKOFF_S)
        return (
            f"{self.spec.name} ended with exit code {exit_code}; "
            f"restarting it in {wait_s:g} s ({self.log.failure()[:_MAX_SHOWN_CHARS]}; log: "
            f"{self.spec.log_path})"
        )


class Supervisor:
    """Owns the children of `batchmill up`; they die with this process, even if it is killed."""

    def __init__(self, specs: Sequence[ChildSpec], say: Callable[[str], None]) -> None:
        self.children = [SupervisedChild(spec) for spec in specs]
        self._say = say
        self._rotated_at_s = time.monotonic()

    def start(self) -> None:
        """Start all children, in order."""
        for child in self.children:
            child.start()

    def restart_ended_children(self, *, in_first_start: bool = False) -> None:
        """Restart children that ended, and rotate long logs. Call it several times a second.

        Raises:
            ChildMisconfigured: in the first start, one ended because of its settings or its model.
        """
        for child in self.children:
            self._say_if_any(child.restart_if_ended(in_first_start=in_first_start))
        if time.monotonic() - self._rotated_at_s >= _ROTATION_INTERVAL_S:
            self._rotated_at_s = time.monotonic()
            for child in self.children:
                rotate_long_log(child.spec.log_path)

    def stop(self) -> None:
        """End the children in the order of their start, each after the previous one has gone.

        So the worker releases its jobs first, and the deliverer can still send their events.
        """
        for child in self.children:
            self._say_if_any(child.stop())

    def kill(self) -> None:
        """Kill all children at once. May be called from a signal handler."""
        for child in self.children:
            child.kill()

    def wait_until(self, ready: Callable[[], bool], *, activity: str, timeout_s: float) -> None:
        """Wait for a condition that the children bring about.

        Args:
            ready: the condition.
            activity: what the children are doing, such as `starting`, for the message.
            timeout_s: limit in seconds.

        Raises:
            ChildMisconfigured: its settings or its model cannot work.
            ChildFailed: a child ended, or the limit was reached; the message quotes its log.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            for child in self.children:
                exit_code = child.exit_code
                child.check_settings(exit_code)
                if exit_code is not None:
                    raise ChildFailed(
                        f"{child.spec.name} ended with exit code {exit_code} "
                        f"while {activity}; end of {child.spec.log_path}:\n{child.log_tail()}"
                    )
            if time.monotonic() > deadline:
                logs = ", ".join(str(child.spec.log_path) for child in self.children)
                raise ChildFailed(f"{activity} took more than {timeout_s:g} s; see {logs}")
            time.sleep(0.1)

    def _say_if_any(self, line: str | None) -> None:
        if line is not None:
            self._say(line)
