"""Run a command that the kernel ends when the process that started it dies, however that happens.

A small program: `python -I -S die_with_parent.py PARENT_PID SIGNAL COMMAND…` asks the kernel to
send it SIGNAL when its parent is gone, and then becomes COMMAND (same pid, so the caller waits for
and signals the real program). It is a separate program because the request must be made in the
child, after the fork, where running Python code is not safe once the parent has threads
(`preexec_fn`).
"""

from __future__ import annotations

import ctypes
import os
import sys

#: From linux/prctl.h. The setting survives `execve`.
PR_SET_PDEATHSIG = 1


def die_with_parent_command(signal_number: int) -> list[str]:
    """Return the words that go before a command, so that it gets a signal when this process dies.

    Start it from a thread that lives as long as the command may: the kernel watches the *thread*
    that started it.
    """
    shim = [sys.executable, "-I", "-S", __file__]
    return [*shim, str(os.getpid()), str(signal_number)]


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and turn it into the command.

    Args:
        arguments: parent pid, signal number, then the command and its arguments.
    """
    parent_pid, signal_number, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # the parent died before the request was made
        sys.exit(f"parent process {parent_pid} is gone; not starting {command[0]}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
