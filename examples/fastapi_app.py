"""batchmill in a FastAPI service: one asyncio client per server process.

pip install fastapi uvicorn
uvicorn fastapi_app:app          # in this folder, with BATCHMILL_BROKER_URL set

`POST /jobs` takes a prompt, `GET /jobs/ID` returns its state and text, `GET /jobs/ID/events` its
text while it is generated (`job_events.py`). Whoever knows an id can read its text: check here
that the job belongs to your user.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from job_errors import error_response
from job_events import HEADERS, MEDIA_TYPE, job_events, position_of
from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer import (
    AsyncClient,
    BatchmillError,
    JobState,
    SignatureError,
    verify_webhook,
)

MAX_BODY_BYTES = 64 * 1024


class NewJob(BaseModel):
    """What a caller may choose. The model, the tenant, webhooks and limits are this service's."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=8000)
    max_tokens: int = Field(default=48, ge=1, le=512)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the client when a server process starts, in the event loop that uses it."""
    async with AsyncClient() as app.state.client:
        yield


class LimitBody:
    """Refuses a long body while it arrives: FastAPI would read all of it before it looks."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and count the bytes of its body."""
        num_bytes = 0

        async def limited() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body must have at most {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, limited, send)


app = FastAPI(lifespan=lifespan)
app.add_middleware(LimitBody)


@app.exception_handler(BatchmillError)
async def show_error(request: Request, error: BatchmillError) -> Response:
    """Turn an error of batchmill into a response."""
    status, body, headers = error_response(error, request.headers.get("idempotency-key"))
    return Response(json.dumps(body), status, headers, "application/json")


@app.exception_handler(RequestValidationError)
async def show_invalid_body(request: Request, error: RequestValidationError) -> Response:
    """Say what is wrong with a body. FastAPI's own response quotes it, whatever it holds."""
    known = {"prompt", "max_tokens"}
    found = [
        {"param": next((name for name in each["loc"] if name in known), None), "rule": each["type"]}
        for each in error.errors()
    ]
    body = {"error": "invalid_request", "problems": found}
    return Response(json.dumps(body), 422, media_type="application/json")


def get_client(request: Request) -> AsyncClient:
    """Return the client of this process."""
    client: AsyncClient = request.app.state.client
    return client


ClientOfProcess = Annotated[AsyncClient, Depends(get_client)]


@app.post("/jobs", status_code=202)
async def submit(
    new: NewJob,
    client: ClientOfProcess,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, str]:
    """Submit a job; a request that is repeated under the same key makes no second one."""
    job = await client.submit(
        new.prompt, max_tokens=new.max_tokens, idempotency_key=idempotency_key
    )
    return {"id": job.id}


@app.get("/jobs/{job_id}")
async def show(job_id: str, client: ClientOfProcess) -> dict[str, Any]:
    """Return the state of a job, and its text once it is completed."""
    status = await client.status(job_id)
    text = None
    if status.state is JobState.COMPLETED:
        text = (await client.result(job_id, timeout_s=0)).text
    return {"state": status.state, "output_tokens": status.output_tokens, "text": text}


@app.get("/jobs/{job_id}/events")
async def events(
    job_id: str,
    client: ClientOfProcess,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Send the text of a job while it is generated."""
    position = position_of(last_event_id)
    await client.status(job_id)  # an unknown job is a 404, which is too late in the stream
    return StreamingResponse(
        job_events(client, job_id, position), media_type=MEDIA_TYPE, headers=HEADERS
    )


@app.post("/hook", status_code=204)
async def hook(request: Request) -> None:
    """Receive a webhook; the signature covers the raw body."""
    try:
        event = verify_webhook(
            await request.body(), dict(request.headers), os.environ["BATCHMILL_WEBHOOK_SECRET"]
        )
    except SignatureError:
        raise HTTPException(401) from None
    print(event.type, event.data["id"], flush=True)
