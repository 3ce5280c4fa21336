"""A server that greets its clients as a Redis of any version does."""

from __future__ import annotations

import socket
import threading


class GreetingServer:
    """Replies to HELLO with a greeting, and to everything else with OK."""

    def __init__(self, server: str, version: str, mode: str) -> None:
        pairs = {"server": server, "version": version, "mode": mode}
        texts = [text for pair in pairs.items() for text in pair]
        body = "".join(f"${len(text)}\r\n{text}\r\n" for text in texts)
        self.greeting = f"%4\r\n{body}$5\r\nproto\r\n:3\r\n".encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._reply, args=(connection,), daemon=True).start()

    def _reply(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(self.greeting if b"HELLO" in data else b"+OK\r\n")
