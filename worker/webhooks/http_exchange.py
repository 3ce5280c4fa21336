"""One HTTP/1.1 request and its answer on a fresh connection, with a limit on what is read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import h11

#: Bytes of an answer that are read, head and body together. Nobody uses the body; some receivers
#: reset the connection when their answer is not taken.
MAX_RESPONSE_BYTES = 16 * 1024
_READ_BYTES = 4096


class Exchange:
    """Owns a connection for one request. Nothing is decompressed or followed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_RESPONSE_BYTES)
        self._num_bytes = 0

    async def request(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a POST.

        Raises:
            h11.LocalProtocolError: path or headers hold what a request cannot.
            OSError: the connection was lost.
        """
        head = h11.Request(method="POST", target=path, headers=list(headers.items()))
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()

    async def answer_head(self) -> tuple[int, dict[str, str]]:
        """Read up to the end of the answer's head; its status and headers, names in lower case.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP, ended early, or has too long a head.
            OSError: the connection was lost.
        """
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                headers = {
                    name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers
                }
                return event.status_code, headers
            if event is h11.NEED_DATA:
                await self._read()
            elif not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection was closed before an answer")

    async def drain(self) -> None:
        """Read the answer's body, to its end or to the limit, and forget it."""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                await self._read()

    def close(self) -> None:
        """Drop the connection at once; a receiver may not stretch the end of it either."""
        self._writer.transport.abort()

    async def _read(self) -> None:
        if self._num_bytes >= MAX_RESPONSE_BYTES:
            raise h11.RemoteProtocolError(f"the answer exceeds {MAX_RESPONSE_BYTES} bytes")
        data = await self._reader.read(min(_READ_BYTES, MAX_RESPONSE_BYTES - self._num_bytes))
        self._num_bytes += len(data)
        self._http.receive_data(data)
