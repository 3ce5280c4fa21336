"""batchmill in a FastAPI service: one asyncio client per server process.

pip install fastapi uvicorn
uvicorn fastapi_app:app          # in this folder, with BATCHMILL_BROKER_URL set
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from batchmill.producer import (
    AsyncClient,
    GenerationJob,
    JobRejected,
    SignatureError,
    UnknownJob,
    verify_webhook,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Create the client when a server process starts, in the event loop that uses it."""
    async with AsyncClient() as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/jobs", status_code=202)
async def submit(job: GenerationJob, request: Request) -> dict[str, str]:
    """Submit a job, which FastAPI has validated by the same rules as `submit`."""
    try:
        submitted = await request.app.state.client.submit(job)
    except JobRejected as error:
        raise HTTPException(422, {"message": str(error), "code": error.code}) from None
    return {"id": submitted.id}


@app.get("/jobs/{job_id}")
async def show(job_id: str, request: Request) -> dict[str, Any]:
    """Return the state of a job."""
    try:
        status = await request.app.state.client.status(job_id)
    except UnknownJob:
        raise HTTPException(404, "unknown job") from None
    return {"state": status.state, "output_tokens": status.output_tokens}


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
