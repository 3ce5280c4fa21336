"""A job's output as server-sent events, for every asyncio framework; the examples here import it.

A page reads them with the browser's own `EventSource`; `page` is one of its elements:

    const source = new EventSource(`/jobs/${id}/events`);
    source.addEventListener("text", (event) => { page.append(JSON.parse(event.data).text); });
    source.addEventListener("restart", () => { page.replaceChildren(); });
    source.addEventListener("end", () => { source.close(); });
    source.addEventListener("failed", () => { source.close(); });

A browser that loses the connection asks again by itself, with the id of the last event in the
header `Last-Event-ID`, and gets what it has missed, from any process of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

from batchmill.producer import (
    AsyncClient,
    BatchmillError,
    JobProgress,
    OutputRestarted,
    ResultTimeout,
    StreamPosition,
)

#: Proxies would otherwise keep events back, or a copy of them.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "text/event-stream"
#: Seconds between two signs of life while there is no text. They keep proxies from closing the
#: connection, and show within this time that the reader has gone.
HEARTBEAT_S = 5.0
#: Seconds after which a response ends, and the browser asks for the next one.
MAX_RESPONSE_S = 300.0
_LOG = logging.getLogger(__name__)


def position_of(last_event_id: str | None) -> StreamPosition | None:
    """Return the position in a header `Last-Event-ID`; None if there is none.

    Raises:
        InvalidQuery: it is not an id that `job_events` has sent.
    """
    return StreamPosition.from_text(last_event_id) if last_event_id else None


async def job_events(
    client: AsyncClient,
    job_id: str,
    position: StreamPosition | None = None,
    *,
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncGenerator[str, None]:
    """Yield events until the job has ended: text, waiting, restart, and one of end and failed.

    The status of the response is sent by then, so an error is an event too. Look the job up before
    (`client.status`), so that an unknown one is a 404. If the reader goes, the job goes on.
    """
    waits: list[JobProgress] = []
    stream = _pieces(client, job_id, position, waits)
    waiting: asyncio.Future[str] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(stream))
            while not (await asyncio.wait({waiting}, timeout=heartbeat_s))[0]:
                yield _waiting(waits)
            yield waiting.result()
    except (StopAsyncIteration, ResultTimeout):
        return
    except BatchmillError as error:
        _LOG.warning("job %s ended without a completion: %s", job_id, error)
        yield _event("failed", {"code": error.code, "retryable": error.retryable})
    except Exception:
        _LOG.exception("the events of job %s ended", job_id)
        yield _event("failed", {"code": "internal_error", "retryable": True})
    finally:
        if waiting is not None and not waiting.done():
            waiting.cancel()
            with contextlib.suppress(BaseException):
                await waiting
        await stream.aclose()


async def _pieces(
    client: AsyncClient, job_id: str, position: StreamPosition | None, waits: list[JobProgress]
) -> AsyncGenerator[str, None]:
    while True:
        output = client.stream(job_id, position, timeout_s=MAX_RESPONSE_S, on_wait=waits.append)
        try:
            async for piece in output:
                # A reader that asks again continues after the last id that it has seen.
                yield _event("text", {"text": piece.text}, piece.position.to_text())
            break
        except OutputRestarted:
            # Another worker had to begin again: what the reader has is void.
            position = None
            yield _event("restart", {}, StreamPosition().to_text())
    result = await client.result(job_id, timeout_s=0)
    yield _event("end", {"finish_reason": result.finish_reason, "usage": result.usage.model_dump()})


def _waiting(waits: list[JobProgress]) -> str:
    if not waits:
        return ": waiting\n\n"
    progress = waits[-1]
    waits.clear()
    return _event("waiting", {"jobs_before": progress.queue_position, "eta_s": progress.eta_s})


def _event(name: str, data: dict[str, Any], event_id: str | None = None) -> str:
    # JSON has no line breaks, which would end the event.
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"event: {name}\n{head}data: {json.dumps(data)}\n\n"
