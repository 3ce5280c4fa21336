"""One HTTP/1.1 request and its response on a new connection, with a limit on the bytes read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import h11

#: Bytes of a response that are read, head and body together. The body is not used, but some
#: receivers reset the connection if their response is not read.
MAX_RESPONSE_BYTES = 16 * 1024
_READ_BYTES = 4096


class HttpExchange:
    """Owns the connection of one request. Decompresses nothing and follows no redirect."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_RESPONSE_BYTES)
        self._num_bytes = 0

    async def request(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a POST.

        Raises:
            h11.LocalProtocolError: path or headers hold characters that a request cannot.
            OSError: the connection was lost.
        """
        head = h11.Request(method="POST", target=path, headers=list(headers.items()))
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()

    async def read_response_head(self) -> tuple[int, dict[str, str]]:
        """Read the head of the response, and return its status and headers, names in lower case.

        Raises:
            h11.RemoteProtocolError: the response is not HTTP, ends early, or has too long a head.
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
                raise h11.RemoteProtocolError("the connection was closed before a response")

    async def discard_body(self) -> None:
        """Read the body of the response to its end or to the limit, and discard it."""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                await self._read()

    def close(self) -> None:
        """Drop the connection at once, so that a receiver cannot delay its end either."""
        self._writer.transport.abort()

    async def _read(self) -> None:
        if self._num_bytes >= MAX_RESPONSE_BYTES:
            raise h11.RemoteProtocolError(f"the response exceeds {MAX_RESPONSE_BYTES} bytes")
        data = await self._reader.read(min(_READ_BYTES, MAX_RESPONSE_BYTES - self._num_bytes))
        self._num_bytes += len(data)
        self._http.receive_data(data)
