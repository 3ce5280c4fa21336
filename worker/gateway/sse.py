"""Server-sent events: how they are written, and comments that keep a silent stream open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

#: Without these, proxies keep the events back.
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
DONE = b"data: [DONE]\n\n"
_HEARTBEAT = b": heartbeat\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """Return one event with a JSON value."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode()


def event_stream(events: AsyncGenerator[bytes, None], heartbeat_s: float) -> StreamingResponse:
    """Return the response that sends events as they come."""
    return StreamingResponse(
        with_heartbeats(events, heartbeat_s), media_type="text/event-stream", headers=_HEADERS
    )


async def with_heartbeats(
    events: AsyncGenerator[bytes, None], heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Yield events, and a comment after each `heartbeat_s` seconds without one."""
    waiting: asyncio.Future[bytes] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait({waiting}, timeout=heartbeat_s))[0]:
                yield _HEARTBEAT
            try:
                yield waiting.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            with contextlib.suppress(BaseException):
                await waiting
        await events.aclose()
