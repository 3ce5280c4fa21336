"""Webhook receivers that take as little processor time as they can, and one that never responds."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_RESPONSE = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"


class QuickReceivers:
    """Receivers on ports of their own, in one thread; notes when each event arrived first."""

    def __init__(self, number: int) -> None:
        self.urls: list[str] = []
        #: Event id → monotonic seconds.
        self.arrived_at_s: dict[str, float] = {}
        self._number = number
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> QuickReceivers:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def wait_for(self, num_events: int, *, timeout_s: float) -> None:
        """Wait until this many events have arrived, or for the time limit."""
        deadline_s = time.monotonic() + timeout_s
        while len(self.arrived_at_s) < num_events and time.monotonic() < deadline_s:
            time.sleep(0.02)

    async def _listen(self) -> None:
        for _ in range(self._number):
            server = await asyncio.start_server(self._respond, "127.0.0.1", 0, backlog=512)
            self.urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length, event_id = _LENGTH.search(head), _ID.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
            if event_id is not None:
                self.arrived_at_s.setdefault(event_id[1].decode(), time.monotonic())
            writer.write(_RESPONSE)
            await writer.drain()
            writer.close()


class Tarpit:
    """A receiver that accepts connections and never responds."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._accepted: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Tarpit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for connection in (self._listening, *self._accepted):
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # __exit__ closes the socket
            while True:
                self._accepted.append(self._listening.accept()[0])
