"""Starts child processes that cannot outlive this process, and stops them."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchmill.worker.engine_host.die_with_parent import die_with_parent_command


def start_child_process(
    command: Sequence[str],
    *,
    log_path: Path,
    death_signal: signal.Signals,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command that the kernel signals when this process dies, SIGKILL included.

    The child gets its own session, so that a Ctrl-C in the terminal reaches only the parent, which
    then stops its children in order.

    Args:
        command: program and arguments; the program is looked up on PATH.
        log_path: file that stdout and stderr are appended to.
        death_signal: signal that the child gets when this process dies.
        environment: the child's whole environment; None takes that of this process.
        pass_fds: file descriptors that stay open in the child.

    Raises:
        RuntimeError: called from a thread other than the main one. The kernel watches the *thread*
            that forked, so the child would die as soon as that thread ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"{command[0]} must be started from the main thread, not from "
            f"{threading.current_thread().name!r}: it would die when that thread ends"
        )
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*die_with_parent_command(death_signal), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )


def stop_child_process(process: subprocess.Popen[bytes], *, timeout_s: float) -> bool:
    """End a child with SIGTERM, and with SIGKILL if it still runs after `timeout_s` seconds.

    Returns:
        True if SIGTERM was enough or the child had already ended.
    """
    if process.poll() is not None:
        return True
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
