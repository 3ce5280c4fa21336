"""`/v1/decisions` and `/v1/systemone`: questions that their caller waits for the answers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batchmill.producer.bulk.result_lines import response_body
from batchmill.producer.job.line import LineKind, decision_fields

from .backend import Backend
from .body_names import body_names
from .caller import identify, require_scope
from .completion_request import read_flag
from .jobs import checked_job, job_details, submit_job, wait_for_result
from .openai_api import DECISIONS
from .request_body import read_request
from .spec.decision_fields import DECISION


async def create_decision(request: Request) -> Response:
    """Serve `POST /v1/decisions`, SGLang's path: answers to questions about a state."""
    return await _create(request)


async def create_systemone(request: Request) -> Response:
    """Serve `POST /v1/systemone`, the path of vLLM and transformers: as `/v1/decisions`."""
    return await _create(request)


async def _create(request: Request) -> Response:
    backend: Backend = request.app.state.backend
    key = await identify(request, backend)
    require_scope(key, "submit")
    fields, cancels = await read_request(request, backend.settings, read_decision)
    with body_names(DECISIONS):
        job = await checked_job(request, backend, key, fields)
        job_id = await submit_job(request, backend, key, job, job_details(LineKind.DECIDE.value))
    result = await wait_for_result(request, backend, job_id, cancels=cancels)
    return JSONResponse(response_body(LineKind.DECIDE, result))


def read_decision(body: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the fields of the job in a body, and whether it is cancelled if its caller leaves.

    Raises:
        ApiError: a field is invalid.
    """
    fields = DECISION.read(body)
    cancels = read_flag(fields, "cancel_on_disconnect")
    return decision_fields(fields), cancels
