"""Runs a preparation, then forks a process for each program that `prepared_python` asks for."""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import sys
import threading
from typing import Any


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Reply to requests; return a program in the process that has to run it, None at the end."""
    requests = channel.makefile("rb")
    while line := requests.readline():
        request = json.loads(line)
        reply: dict[str, Any] = {"number": request.pop("number"), "ended": _ended()}
        if "report" not in request:
            if not (pid := os.fork()):
                requests.close()
                channel.close()
                return dict(request)
            reply["pid"] = pid
        channel.sendall(json.dumps(reply).encode() + b"\n")
    return None


def _ended() -> dict[int, int]:
    """Return the statuses of the programs that have ended, each of them once."""
    statuses: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return statuses
        if not pid:
            return statuses
        statuses[pid] = os.waitstatus_to_exitcode(status)


def run(arguments: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    """Become the program: its environment, folder, output and arguments, then its code."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    option, what, *further = arguments
    sys.argv = [option, *further]
    if option == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        raise ValueError(f"starts programs with -c or -m, not {option!r}")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        exec(sys.argv[2], {})
        # A fork keeps only the thread that forks: a lock that another one holds would never open.
        assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
        gc.collect()
        gc.freeze()
        program = serve(asked)
    if program is not None:
        run(**program)
