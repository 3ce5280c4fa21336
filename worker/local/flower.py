"""Flower as a child of `batchmill up`: on loopback, read-only and without a password.

Its history is kept in the state folder.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path

#: Flower's usual port; a free one is used if it is taken.
DEFAULT_PORT = 5555
#: Flower serves nothing while it saves its history, about 0.3 s for so many tasks.
_MAX_TASKS = 10_000
_SAVE_INTERVAL_MS = 30_000


class Flower:
    """The command and environment of Flower, and its health check."""

    def __init__(self, port: int | None, state_dir: Path) -> None:
        """Choose the port.

        Args:
            port: on 127.0.0.1; None takes 5555 or, if that is in use, any free one.
            state_dir: folder of the history.
        """
        self._history = state_dir.resolve() / "flower"
        self._port = port or free_port(DEFAULT_PORT)
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def command(self) -> list[str]:
        """The program with its arguments; all options are in the environment."""
        return [sys.executable, "-m", "batchmill.worker.cli", "flower"]

    def environment(self) -> dict[str, str]:
        """Return the options as variables; those of the user's environment come first."""
        return {
            "FLOWER_PERSISTENT": "true",
            "FLOWER_DB": str(self._history),
            "FLOWER_STATE_SAVE_INTERVAL": str(_SAVE_INTERVAL_MS),
            "FLOWER_MAX_TASKS": str(_MAX_TASKS),
            "FLOWER_TASKS_COLUMNS": "uuid,state,kwargs,result,received,runtime,worker",
            **{name: value for name, value in os.environ.items() if name.startswith("FLOWER_")},
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self._port),
            "FLOWER_READ_ONLY": "true",  # without a password nothing may be stopped
        }

    def is_healthy(self) -> bool:
        """Return whether its health check succeeds within a second."""
        # No proxies: those of the environment are for other hosts.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.url}/healthcheck", timeout=1.0) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def free_port(preferred: int) -> int:
    """Return the preferred loopback port if it is free, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
