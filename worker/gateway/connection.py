"""The HTTP connection of a client, which is cut off if the client stands still."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(*, header_timeout_s: float, write_timeout_s: float) -> type[H11Protocol]:
    """Return uvicorn's connection with limits on the time that headers and reads may take.

    uvicorn waits for both without a limit, so that a few clients that send a byte per minute, or
    read nothing, could hold all connections. The body is limited in `request_body.py`.
    """

    class Connection(H11Protocol):
        """Owns one timer for the headers that are being sent, and one for a stalled response."""

        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Begin to wait for the first request."""
            super().connection_made(transport)
            self._header_timer = self.loop.call_later(header_timeout_s, transport.abort)

        def data_received(self, data: bytes) -> None:
            """Take bytes; only while headers are incomplete does their timer run."""
            super().data_received(data)
            is_partial = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if not is_partial:
                self._stop_header_timer()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(header_timeout_s, self.transport.abort)

        def pause_writing(self) -> None:
            """Note that the client does not read."""
            super().pause_writing()
            self._write_timer = self.loop.call_later(write_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            """Note that the client reads again."""
            super().resume_writing()
            self._stop_write_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            """End the timers."""
            self._stop_header_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def _stop_header_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return Connection
