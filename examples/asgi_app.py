"""batchmill in an asyncio web service on plain ASGI: it runs on any server, without a framework.

    uvicorn asgi_app:app          # in this folder, with BATCHMILL_BROKER_URL set

`POST /jobs` with a prompt as the body returns the job's id, `GET /jobs/ID` its state and text.
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
    """The service. It creates one client per server process, in the event loop of the server."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request, or the start and end of the server."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "http":
            status, content = await self._respond(scope["method"], scope["path"], receive)
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(content).encode()})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with AsyncClient() as self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(self, method: str, path: str, receive: Receive) -> tuple[int, Any]:
        assert self._client is not None, "the server must support the ASGI lifespan"
        head, _, job_id = path.strip("/").partition("/")
        if head != "jobs":
            return 404, {"error": "not found"}
        if method == "GET" and job_id:
            return await self._show_job(self._client, job_id)
        if method != "POST" or job_id:
            return 405, {"error": "method not allowed"}
        body = await _read_body(receive)
        if body is None:
            return 413, {"error": f"the body must have at most {MAX_BODY_BYTES} bytes"}
        try:
            job = await self._client.submit(prompt=body.decode(errors="replace"), max_tokens=48)
        except JobRejected as error:
            return 422, {"error": str(error), "code": error.code, "param": error.param}
        return 202, {"id": job.id}

    async def _show_job(self, client: AsyncClient, job_id: str) -> tuple[int, Any]:
        try:
            status = await client.status(job_id)
        except UnknownJob:
            return 404, {"error": "unknown job"}
        text = None
        if status.state is JobState.COMPLETED:
            text = (await client.result(job_id, timeout_s=0)).text
        return 200, {"state": status.state, "text": text}


async def _read_body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if it is too long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return body


app = App()
