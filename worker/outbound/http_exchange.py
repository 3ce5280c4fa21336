"""One HTTP/1.1 request and its response on a new connection, with a limit on the bytes read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import h11

#: Bytes of a response's head, more than the limit of common servers and proxies.
MAX_HEAD_BYTES = 64 * 1024
#: Bytes of its body that are read. The body is not used, but some receivers reset the connection
#: if their response is not read.
MAX_BODY_BYTES = 16 * 1024
_READ_BYTES = 4096


class HeadTooLong(h11.RemoteProtocolError):
    """The head of the response is longer than `MAX_HEAD_BYTES`."""


class BodyTooLong(Exception):
    """The body of the response is longer than the reader allows."""


class NoResponse(OSError):
    """The receiver closed the connection, or lost it, before its response was complete."""


class HttpExchange:
    """Owns the connection of one request. Decompresses nothing and follows no redirect."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES + _READ_BYTES
        )
        self._num_bytes = 0
        self._start = b""  # of the response

    async def request(
        self, path: str, headers: Mapping[str, str], body: bytes, method: str = "POST"
    ) -> None:
        """Send a request.

        Raises:
            h11.LocalProtocolError: path or headers hold characters that a request cannot.
            NoResponse: the connection was lost.
        """
        head = h11.Request(method=method, target=path, headers=list(headers.items()))
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        try:
            await self._writer.drain()
        except OSError as error:
            raise NoResponse(str(error)) from error

    async def read_response_head(self) -> tuple[int, dict[str, str]]:
        """Read the head of the response, and return its status and headers, names in lower case.

        Raises:
            HeadTooLong: it exceeds `MAX_HEAD_BYTES`.
            h11.RemoteProtocolError: the response is not HTTP.
            NoResponse: the connection ended before the response.
        """
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                headers = {
                    name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers
                }
                return event.status_code, headers
            if event is h11.NEED_DATA:
                if self._num_bytes >= MAX_HEAD_BYTES:
                    raise HeadTooLong(f"the head exceeds {MAX_HEAD_BYTES} bytes")
                try:
                    is_open = await self._read()
                except OSError as error:
                    raise NoResponse(str(error)) from error
                if not is_open and b"HTTP/".startswith(self._start):
                    raise NoResponse("the connection was closed before a response")
            elif not isinstance(event, h11.InformationalResponse):
                raise NoResponse("the connection was closed before a response")

    async def read_body(self, max_bytes: int) -> bytes:
        """Return the body of the response.

        Raises:
            BodyTooLong: it has more than `max_bytes`.
            h11.RemoteProtocolError: the response is not HTTP.
            NoResponse: the connection ended before the body.
        """
        body = bytearray()
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > max_bytes:
                    raise BodyTooLong
            elif event is h11.NEED_DATA:
                try:
                    await self._read()
                except OSError as error:
                    raise NoResponse(str(error)) from error
            elif isinstance(event, h11.ConnectionClosed):
                raise NoResponse("the connection was closed before the end of the body")
        return bytes(body)

    async def discard_body(self) -> None:
        """Read the body of the response to its end or to the limit, and discard it."""
        limit = self._num_bytes + MAX_BODY_BYTES
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                if self._num_bytes >= limit:
                    return
                await self._read()

    def close(self) -> None:
        """Drop the connection at once, so that a receiver cannot delay its end either."""
        self._writer.transport.abort()

    async def _read(self) -> bool:
        """Read a part of the response; return False if the receiver sends no more."""
        data = await self._reader.read(_READ_BYTES)
        self._num_bytes += len(data)
        self._start = (self._start + data)[:5]
        self._http.receive_data(data)
        return bool(data)
