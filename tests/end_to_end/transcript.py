"""Pages that show commands and what they print, recorded by running them in one shell.

Each page has a script with its steps: `newcomer.py`, `newcomer_metrics.py`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Lines of one command's output that a page keeps, at its beginning and at its end.
_FIRST, _LAST = 5, 9
_MARK = "end of the output of"
#: Longest time that one command may take, seconds: the first one downloads and installs.
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Command:
    """One command, and a text that its output must have."""

    line: str
    expected: str = ""
    #: Looks at the output, and raises if something is wrong.
    check: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A section of the page."""

    title: str
    text: str
    commands: tuple[Command, ...]
    after: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of commands and their outputs."""

    path: Path
    head: str
    steps: tuple[Step, ...]
    #: A command that is run first, and not shown.
    prepare: str = "true"

    @property
    def lines(self) -> list[str]:
        """Its commands."""
        return [command.line for step in self.steps for command in step.commands]

    def record(self) -> str:
        """Run everything and return the page.

        Raises:
            RuntimeError: a command failed, or its output lacks what it must have.
        """
        parts, timings = [self.head], []
        with shell() as opened:
            folder = opened.run("pwd")
            opened.run(self.prepare)
            for step in self.steps:
                parts.append(f"\n## {step.title}\n\n{wrapped(step.text)}\n\n```console\n")
                for command in step.commands:
                    started_s = time.monotonic()
                    output = opened.run(command.line)
                    timings.append((command.line, time.monotonic() - started_s))
                    if command.expected not in output:
                        raise RuntimeError(f"{command.line}: no {command.expected!r} in\n{output}")
                    if command.check is not None:
                        command.check(output)
                    parts.append(f"$ {command.line}\n{tidy(output, folder)}")
                parts.append("```\n" + (f"\n{step.after}\n" if step.after else ""))
        parts.append(_timings(timings))
        return "".join(parts)

    def main(self) -> None:
        """Record the page, and write or print it."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--write", action="store_true", help=f"write {self.path.name}")
        is_written = parser.parse_args().write
        page = self.record()
        if is_written:
            self.path.write_text(page, encoding="utf-8")
        else:
            print(page)


class Shell:
    """A shell that runs one command after the other, and says what each has printed."""

    def __init__(self, folder: Path) -> None:
        kept = ("PATH", "LANG", "TERM", "SSL_CERT_FILE")
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in kept or name.startswith("PIP_")
        }
        environment |= {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "home"),  # another `batchmill up` of this user may run
            "REPOSITORY": str(ROOT),
            "COLUMNS": "110",
            "PYTHONSAFEPATH": "1",
        }
        (folder / "home").mkdir()
        self._child = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Run a command and return its output.

        Raises:
            RuntimeError: it failed, or the shell has ended.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f'{command}\nprintf "\\n{_MARK} %s\\n" $?\n')
        self._child.stdin.flush()
        lines: list[str] = []
        watchdog = threading.Timer(_TIMEOUT_S, os.killpg, (self._child.pid, signal.SIGKILL))
        watchdog.start()
        for line in self._child.stdout:
            if line.startswith(_MARK):
                watchdog.cancel()
                output = "".join(lines).strip("\n")
                if line.split()[-1] != "0" and not command.startswith("kill"):
                    raise RuntimeError(f"{command} failed:\n{output}")
                return output
            lines.append(line)
        raise RuntimeError(f"the shell ended during {command}:\n{''.join(lines)}")

    def kill(self) -> None:
        """End the shell and everything that it has started."""
        assert self._child.stdin is not None
        self._child.stdin.write("kill $(jobs -p) 2>/dev/null; wait; exit\n")
        self._child.stdin.close()
        try:
            self._child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


@contextmanager
def shell() -> Iterator[Shell]:
    """Open a shell in an empty folder, with an empty home."""
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        opened = Shell(Path(folder))
        try:
            yield opened
        finally:
            opened.kill()


def tidy(output: str, folder: str) -> str:
    """Return an output with the folder of the run as `~`, and without its middle if it is long."""
    lines = [line.rstrip() for line in output.replace(f"{folder}/home", "~").splitlines()]
    lines = [line.replace(folder, "~") for line in lines]
    if len(lines) > _FIRST + _LAST + 1:
        lines = [*lines[:_FIRST], "…", *lines[-_LAST:]]
    return "".join(f"{line}\n" for line in lines)


def wrapped(text: str) -> str:
    """Return prose in lines of at most 120 characters."""
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) >= 120:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def _timings(timings: list[tuple[str, float]]) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    load = os.getloadavg()[0]
    rows = "".join(
        f"| `{line.partition(' --template')[0]}` | {elapsed_s:.0f} s |\n"
        for line, elapsed_s in timings
        if elapsed_s >= 1 and not line.startswith("kill")
    )
    text = (
        f"Recorded on {today}, on {os.cpu_count()} cores with packages from a local folder; the "
        f"load was {load:.1f} at the end. Commands that took a second or more:"
    )
    return f"\n## How long it took\n\n{wrapped(text)}\n\n| command | time |\n|---|---|\n{rows}"
