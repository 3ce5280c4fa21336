"""Configuration of the embedded broker: its folder, its address and its server's settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from batchmill.worker.service_errors import BrokerError

#: A unix socket's path must fit sockaddr_un.sun_path: 108 bytes on Linux, 104 on the BSDs, with
#: its ending NUL.
MAX_SOCKET_PATH_BYTES = 103


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """Folder and address of the embedded broker."""

    #: Holds the lock, the server's configuration and log, and `data/`. Created with mode 0700.
    directory: Path
    #: Unix socket; by default `broker.sock` in the directory. Its own folder is created with mode
    #: 0700.
    socket_path: Path | None = None
    #: Listen on 127.0.0.1:port instead of a socket. Any local user can connect to a port; a socket
    #: is private.
    port: int | None = None

    @property
    def url(self) -> str:
        """Broker URL in the form that `producer.Client` and BATCHMILL_BROKER_URL take."""
        if self.port is not None:
            return f"redis://127.0.0.1:{self.port}/0"
        return f"unix://{self.socket}"

    @property
    def socket(self) -> Path:
        """The path of the socket, even if a port is used instead."""
        return self.socket_path or self.directory / "broker.sock"

    def check_socket_path(self) -> None:
        """Refuse a socket path that is too long for the kernel.

        Raises:
            BrokerError: the path is too long.
        """
        num_bytes = len(os.fsencode(self.socket))
        if self.port is None and num_bytes > MAX_SOCKET_PATH_BYTES:
            raise BrokerError(
                f"the socket path {self.socket} has {num_bytes} bytes, the limit is "
                f"{MAX_SOCKET_PATH_BYTES}; choose a shorter folder, or a port"
            )

    def server_configuration(self) -> str:
        """Return the text of the server's configuration file."""
        listen = (
            ["port 0", f'unixsocket "{self.socket}"', "unixsocketperm 600"]
            if self.port is None
            else [f"port {self.port}", "bind 127.0.0.1"]
        )
        lines = [
            "# Written at every start; changes here are lost.",
            *listen,
            "daemonize no",
            f'dir "{self.directory / "data"}"',
            'logfile ""',  # to stdout, which is the log file
            "appendonly yes",
            # A machine crash loses about 1 s; a server crash nothing, unless the disk is slow.
            "appendfsync everysec",
            "no-appendfsync-on-rewrite no",
            'save ""',  # the append-only file holds the data; no second copy is needed
            "maxmemory-policy noeviction",  # any other policy may drop jobs silently
        ]
        return "\n".join(lines) + "\n"
