"""`/v1/embeddings`, `/v1/score` and `/v1/rerank`: a job that its caller waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer import JobResult
from batchmill.producer.bulk.pooled_bodies import embedding_body, rerank_body, score_body
from batchmill.producer.job.pooled_requests import (
    PooledFormat,
    read_embedding_body,
    read_rerank_body,
    read_score_body,
)

from .backend import Backend
from .body_names import body_names
from .caller import identify, require_scope
from .completion_request import read_flag, read_service_tier
from .jobs import checked_job, job_details, submit_job, wait_for_result
from .openai_api import EMBEDDINGS, RERANK, SCORE
from .request_body import read_request
from .spec.body import Body
from .spec.pooled_fields import EMBEDDING, RERANKING, SCORING

_Read = Callable[[Mapping[str, Any]], tuple[dict[str, Any], PooledFormat]]
_Write = Callable[[JobResult, PooledFormat], dict[str, Any]]


#: What a batch's line of each endpoint is read by.
POOLED: Mapping[str, tuple[Body, _Read]] = {
    EMBEDDINGS: (EMBEDDING, read_embedding_body),
    SCORE: (SCORING, read_score_body),
}


async def create_embeddings(request: Request) -> Response:
    """Serve `POST /v1/embeddings`."""
    return await _create(request, EMBEDDINGS, EMBEDDING, read_embedding_body, embedding_body)


async def create_score(request: Request) -> Response:
    """Serve `POST /v1/score`."""
    return await _create(
        request, SCORE, SCORING, read_score_body, lambda result, _: score_body(result)
    )


async def create_rerank(request: Request) -> Response:
    """Serve `POST /v1/rerank`."""
    return await _create(request, RERANK, RERANKING, read_rerank_body, rerank_body)


def read_pooled(
    spec: Body, read: _Read, body: Mapping[str, Any]
) -> tuple[dict[str, Any], PooledFormat, bool]:
    """Return the fields of the job in a body, the format of its response, and what a leave does.

    Raises:
        ApiError, JobRejected: a field is invalid, missing or not supported.
    """
    fields, how = read(spec.read(body))
    cancels = read_flag(fields, "cancel_on_disconnect")
    read_service_tier(fields)
    return fields, how, cancels


async def _create(request: Request, api: str, spec: Body, read: _Read, write: _Write) -> Response:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    fields, how, cancels = await read_request(
        request, backend.settings, partial(read_pooled, spec, read)
    )
    with body_names(api, how.names):
        job = await checked_job(request, backend, key, fields)
    job_id = await submit_job(request, backend, key, job, job_details(api))
    result = await wait_for_result(request, backend, job_id, cancels=cancels)
    return JSONResponse(await asyncio.to_thread(write, result, how))
