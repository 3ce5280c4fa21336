"""One address that leads to one server or another, as a service name in a cloud does."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path


class Address:
    """One address that leads to a server, as a service name in a cloud does.

    Connections that exist when it is moved stay open, to the server that they were made to.
    """

    def __init__(self, folder: Path, target: Path) -> None:
        self.path = folder / "address"
        self.url = f"unix://{self.path}"
        self.target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self.target))
            except OSError:  # there is no server: as if there were no such address
                client.close()
                server.close()
                continue
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """Pass bytes both ways until an end closes, or a reply is to be lost."""
        peers = {client: server, server: client}
        with client, server, selectors.DefaultSelector() as selector:
            for end in peers:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = client if key.fileobj is client else server
                    try:
                        data = source.recv(65536)
                        if not data or (source is server and self.loses(data)):
                            return
                        peers[source].sendall(data)
                    except OSError:  # an end was killed
                        return

    def loses(self, reply: bytes) -> bool:
        """Return whether a reply is lost, together with its connection; here none is."""
        return False
