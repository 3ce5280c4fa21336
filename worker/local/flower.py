"""Flower as a child of `batchmill up`: on loopback, read-only and without a password."""

from __future__ import annotations

import socket
import sys
import urllib.request

from batchmill.producer.broker_url import celery_url

#: Flower's usual port; a free one is used if it is taken.
DEFAULT_PORT = 5555


class Flower:
    """The command and environment of Flower, and its health check."""

    def __init__(self, port: int | None) -> None:
        """Choose the port.

        Args:
            port: on 127.0.0.1; None takes 5555 or, if that is in use, any free one.
        """
        self._port = port or _free_port(DEFAULT_PORT)
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def command(self) -> list[str]:
        """The program with its arguments; all options are in the environment."""
        return [sys.executable, "-m", "celery", "flower"]

    def environment(self, broker_url: str) -> dict[str, str]:
        """Return the options as variables: every user could read a password on the command line."""
        return {
            "CELERY_BROKER_URL": celery_url(broker_url),
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


def _free_port(preferred: int) -> int:
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
