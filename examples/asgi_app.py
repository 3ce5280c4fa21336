"""batchmill in an asyncio web service on plain ASGI: it runs on any server, without a framework.

    uvicorn asgi_app:app          # in this folder, with BATCHMILL_BROKER_URL set

`POST /jobs` with a prompt as the body returns the job's id, `GET /jobs/ID` its state and text, and
`GET /jobs/ID/events` its text while it is generated (`job_events.py`). A request that is repeated
under the same `Idempotency-Key` makes one job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from job_errors import error_response
from job_events import HEADERS, MEDIA_TYPE, job_events, position_of

from batchmill.producer import AsyncClient, BatchmillError, JobState

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_BODY_BYTES = 64 * 1024


class App:
    """The service. It creates one client per server process, in the event loop of the server."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request, or the start and end of the server."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "http":
            assert self._client is not None, "the server must support the ASGI lifespan"
            headers: dict[str, str] = {}
            try:
                if scope["method"] == "GET" and scope["path"].endswith("/events"):
                    return await self._send_events(self._client, scope, receive, send)
                status, content = await self._respond(self._client, scope, receive)
            except BatchmillError as error:
                status, content, headers = error_response(error, _header(scope, "idempotency-key"))
            await _start(send, status, {"content-type": "application/json", **headers})
            await send({"type": "http.response.body", "body": json.dumps(content).encode()})
        return None

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncClient() as self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(
        self, client: AsyncClient, scope: Message, receive: Receive
    ) -> tuple[int, Any]:
        method, path = scope["method"], scope["path"]
        head, _, job_id = path.strip("/").partition("/")
        if head != "jobs":
            return 404, {"error": "not found"}
        if method == "GET" and job_id:
            return await self._show_job(client, job_id)
        if method != "POST" or job_id:
            return 405, {"error": "method not allowed"}
        body = await _read_body(receive)
        if body is None:
            return 413, {"error": f"the body must have at most {MAX_BODY_BYTES} bytes"}
        job = await client.submit(
            body.decode(errors="replace"),
            max_tokens=48,
            idempotency_key=_header(scope, "idempotency-key"),
        )
        return 202, {"id": job.id}

    async def _show_job(self, client: AsyncClient, job_id: str) -> tuple[int, Any]:
        status = await client.status(job_id)
        text = None
        if status.state is JobState.COMPLETED:
            text = (await client.result(job_id, timeout_s=0)).text
        return 200, {"state": status.state, "text": text}

    async def _send_events(
        self, client: AsyncClient, scope: Message, receive: Receive, send: Send
    ) -> None:
        job_id = scope["path"].removeprefix("/jobs/").removesuffix("/events")
        position = position_of(_header(scope, "last-event-id"))
        await client.status(job_id)  # an unknown job is a 404, which is too late in the stream
        await _start(send, 200, {"content-type": MEDIA_TYPE, **HEADERS})
        events = asyncio.create_task(_send_all(job_events(client, job_id, position), send))
        reader = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({events, reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (events, reader):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task


def _header(scope: Message, name: str) -> str | None:
    value = dict(scope["headers"]).get(name.encode())
    return None if value is None else value.decode("latin-1")


async def _start(send: Send, status: int, headers: dict[str, str]) -> None:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _send_all(events: AsyncGenerator[str, None], send: Send) -> None:
    """Send events until there are no more, or the reader has gone."""
    async with contextlib.aclosing(events):
        async for event in events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if it is too long."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return body


app = App()
