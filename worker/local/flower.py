"""Flower as a child of `batchmill up`: on loopback, read-only, without a password."""

from __future__ import annotations

import socket
import sys
import urllib.request

from batchmill.producer.broker_url import celery_url

#: Flower's usual port; another is taken where it is in use.
DEFAULT_PORT = 5555


class Flower:
    """How to run Flower, and whether it answers."""

    def __init__(self, port: int | None) -> None:
        """Choose where it listens.

        Args:
            port: on 127.0.0.1; None takes 5555 or, where that is in use, any free one.
        """
        self._port = port or _free_port(DEFAULT_PORT)
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def command(self) -> list[str]:
        """The program; all its options are in the environment."""
        return [sys.executable, "-m", "celery", "flower"]

    def environment(self, broker_url: str) -> dict[str, str]:
        """Its options: there and not in the command line, where all could read a password."""
        return {
            "CELERY_BROKER_URL": celery_url(broker_url),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self._port),
            "FLOWER_READ_ONLY": "true",  # without a password nobody may stop workers or jobs
        }

    def answers(self) -> bool:
        """Whether its health check succeeds within a second."""
        # No proxies: those of the environment are for other hosts.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.url}/healthcheck", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _free_port(preferred: int) -> int:
    """The preferred loopback port, or any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
