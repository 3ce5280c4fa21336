"""A TCP proxy before Redis: one address per program, whose connections can be disturbed."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

_HOST = "127.0.0.1"
_REDIS_PORT = 6379
#: Limit in seconds for one change of the proxy.
_CALL_TIMEOUT_S = 60.0


class Links:
    """Owns the proxy's thread and its addresses, all of which lead to one server."""

    def __init__(self, server_url: str) -> None:
        """Start the proxy's thread.

        Args:
            server_url: of the server, `redis://`.
        """
        self._server = urlsplit(server_url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chaos-links", daemon=True
        )
        self._thread.start()
        self._links: list[Link] = []

    @property
    def server(self) -> tuple[str, int]:
        """Host and port that new connections lead to."""
        return self._server.hostname or _HOST, self._server.port or _REDIS_PORT

    def url_at(self, port: int) -> str:
        """Return the server's URL at a port of the proxy, with its user, password and database."""
        user, at, _ = self._server.netloc.rpartition("@")
        return self._server._replace(netloc=f"{user}{at}{_HOST}:{port}").geturl()

    def add(self) -> Link:
        """Open an address."""
        link = Link(self)
        self.run(link.listen())
        self._links.append(link)
        return link

    def lead_to(self, server_url: str) -> None:
        """Lead new connections to another server; the old ones stay, as after a change of DNS."""
        self._server = urlsplit(server_url)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the proxy's thread and wait for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_S)

    def call(self, change: Callable[[], None]) -> None:
        """Call a function in the proxy's thread and wait for it."""

        async def work() -> None:
            change()

        self.run(work())

    def close(self) -> None:
        """Close all connections and end the thread."""
        for link in self._links:
            self.run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()


class Link:
    """One address of the proxy. Its methods may be called from any thread."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._listener: asyncio.Server | None = None
        self.port = 0
        #: Both ends of every connection; only the proxy's thread uses what follows.
        self.ends: set[_End] = set()
        self.is_held = False
        self.is_refusing = False
        #: Share of the replies that are lost with their connection.
        self.cut_share = 0.0

    @property
    def url(self) -> str:
        """Broker URL of the server through this link."""
        return self._links.url_at(self.port)

    def cut(self) -> None:
        """Cut all connections."""
        self._links.call(self._abort_all)

    def hold(self) -> None:
        """Let nothing pass, in either direction, until `release`."""
        self._links.call(lambda: self._set_held(True))

    def release(self) -> None:
        """Let everything pass that was held."""
        self._links.call(lambda: self._set_held(False))

    def refuse(self, is_refusing: bool) -> None:
        """Cut all connections and refuse new ones, or accept them again."""

        def change() -> None:
            self.is_refusing = is_refusing
            if is_refusing:
                self._abort_all()

        self._links.call(change)

    def lose_requests(self) -> None:
        """Discard what clients send on the connections that exist now."""
        self._links.call(lambda: self._drop_from(clients=True))

    def lose_replies(self) -> None:
        """Discard what the server sends on the connections that exist now."""
        self._links.call(lambda: self._drop_from(clients=False))

    def cut_replies(self, share: float) -> None:
        """Lose this share of the replies, each with its connection; 0 ends it."""

        def change() -> None:
            self.cut_share = share

        self._links.call(change)

    async def listen(self) -> None:
        """Open the address."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _ClientEnd(self), _HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the address and its connections."""
        if self._listener is not None:
            self._listener.close()
        self._abort_all()

    @property
    def server(self) -> tuple[str, int]:
        """Host and port that new connections lead to."""
        return self._links.server

    def _abort_all(self) -> None:
        for end in list(self.ends):
            end.abort()

    def _set_held(self, is_held: bool) -> None:
        self.is_held = is_held
        for end in self.ends:
            end.pause("held", is_held)

    def _drop_from(self, *, clients: bool) -> None:
        for end in self.ends:
            if isinstance(end, _ClientEnd) is clients:
                end.is_dropping = True


class _End(asyncio.Protocol):
    """One end of a connection through the proxy."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.peer: _End | None = None
        self.is_dropping = False
        self._transport: asyncio.Transport | None = None
        self._pauses: set[str] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.ends.add(self)
        self.pause("held", self.link.is_held)

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.ends.discard(self)
        if self.peer is not None:
            self.peer.finish()

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and not self.is_dropping:
            self.peer.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause("full", True)

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.pause("full", False)

    def pause(self, reason: str, is_paused: bool) -> None:
        """Stop reading for a reason, or drop the reason."""
        if is_paused:
            self._pauses.add(reason)
        else:
            self._pauses.discard(reason)
        if self._transport is None or self._transport.is_closing():
            return
        if self._pauses and self._transport.is_reading():
            self._transport.pause_reading()
        elif not self._pauses and not self._transport.is_reading():
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def finish(self) -> None:
        """Close the connection after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection at once, at both ends."""
        for end in (self, self.peer):
            if end is not None and end._transport is not None:
                end._transport.abort()


class _ClientEnd(_End):
    """The end of a program; it connects to the server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.link.is_refusing:
            self.abort()
            return
        self.pause("connecting", True)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_connection(
                lambda: _ServerEnd(self.link), *self.link.server
            )
        except OSError:
            self.abort()
            return
        self.peer, server.peer = server, self
        if self._transport is None or self._transport.is_closing():
            server.abort()
            return
        self.pause("connecting", False)


class _ServerEnd(_End):
    """The end of the server."""

    def data_received(self, data: bytes) -> None:
        if self.link.cut_share and random.random() < self.link.cut_share:
            self.abort()
            return
        super().data_received(data)
