"""The gateway as a child of `batchmill up`: the HTTP APIs, on loopback."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .flower import free_port

#: The gateway's usual port; a free one is used if it is taken.
DEFAULT_PORT = 8000


class GatewayChild:
    """The environment of the gateway: where it listens, and where files are kept."""

    def __init__(self, port: int | None, state_dir: Path) -> None:
        """Choose the port.

        Args:
            port: on 127.0.0.1; None takes that of the environment, else 8000 or, if that is in
                use, any free one.
            state_dir: folder of the stack, in which uploaded files are kept.
        """
        given = os.environ.get("BATCHMILL_GATEWAY_PORT", "")
        self._port = port or (int(given) if given.isdecimal() else 0) or free_port(DEFAULT_PORT)
        self._files = state_dir / "files"
        self.url = f"http://127.0.0.1:{self._port}"

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the settings that the stack chooses; the address is always this machine's."""
        chosen = {"BATCHMILL_GATEWAY_HOST": "127.0.0.1", "BATCHMILL_GATEWAY_PORT": str(self._port)}
        if "BATCHMILL_GATEWAY_FILES_URL" not in given:
            chosen["BATCHMILL_GATEWAY_FILES_URL"] = str(self._files.resolve())
        return chosen
