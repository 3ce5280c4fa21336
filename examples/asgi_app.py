"""batchmill in an asyncio web service, on plain ASGI: any server runs it, no framework is needed.

    uvicorn asgi_app:app          # in this folder, with BATCHMILL_BROKER_URL set

`POST /jobs` with a prompt as the body answers the job's id, `GET /jobs/ID` its state and text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from batchmill.producer import AsyncClient, JobRejected, JobState, UnknownJob

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_BODY_BYTES = 64 * 1024


class App:
    """The service. Its client is made in the server's event loop, once a server process."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a connection, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, answer = await self._answer(scope["method"], scope["path"], receive)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncClient() as self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, method: str, path: str, receive: Receive) -> tuple[int, Any]:
        assert self._client is not None, "the server did not run the lifespan"
        head, _, job_id = path.strip("/").partition("/")
        if head != "jobs":
            return 404, {"error": "not found"}
        if method == "GET" and job_id:
            return await self._show(self._client, job_id)
        if method != "POST" or job_id:
            return 405, {"error": "method not allowed"}
        body = await _read(receive)
        if body is None:
            return 413, {"error": f"more than {MAX_BODY_BYTES} bytes"}
        try:
            job = await self._client.submit(prompt=body.decode(errors="replace"), max_tokens=48)
        except JobRejected as error:
            return 422, {"error": str(error), "code": error.code, "param": error.param}
        return 202, {"id": job.id}

    async def _show(self, client: AsyncClient, job_id: str) -> tuple[int, Any]:
        try:
            status = await client.status(job_id)
        except UnknownJob:
            return 404, {"error": "no such job"}
        text = None
        if status.state is JobState.COMPLETED:
            text = (await client.result(job_id, timeout_s=0)).text
        return 200, {"state": status.state, "text": text}


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body, or None where it is too long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return body


app = App()
