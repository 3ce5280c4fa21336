"""The lines of the output and error files, in the format of OpenAI's batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from batchmill.producer.errors import JobUnfinished, UnknownJob
from batchmill.producer.job.line import LineKind
from batchmill.producer.results import Completion, JobResult
from batchmill.producer.store.ended_jobs import EndedJob

from .openai_logprobs import chat_logprobs, completion_logprobs
from .pooled_bodies import embedding_body, score_body

#: Fields of a body that other APIs lack: see `own_fields`.
OWN_FIELDS: Final = ("selection", "watermarked", "explain", "beam_search")


def ended_line(request_id: str, custom_id: str, kind: LineKind, ended: EndedJob) -> dict[str, Any]:
    """Return the line of a job that has ended: its result, or its error."""
    try:
        return result_line(
            request_id, custom_id, kind, ended.result(), finished_at_ms=ended.finished_at_ms
        )
    except JobUnfinished as error:
        partial = partial_body(kind, error.result)
        return error_line(request_id, custom_id, error.code, str(error), partial)
    except UnknownJob as error:
        return error_line(request_id, custom_id, "unknown_job", str(error))


def result_line(
    request_id: str,
    custom_id: str,
    kind: LineKind,
    result: JobResult,
    *,
    finished_at_ms: int | None,
) -> dict[str, Any]:
    """Return the output line of a completed job; `created` is the time of its end."""
    body = _body(kind, result, finished_at_ms)
    response = {"status_code": 200, "request_id": result.id, "body": body}
    return {"id": request_id, "custom_id": custom_id, "response": response, "error": None}


def error_line(
    request_id: str,
    custom_id: str,
    code: str,
    message: str,
    partial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the error line of a record that has no completion, with the output it has."""
    error = {"code": code, "message": message}
    line = {"id": request_id, "custom_id": custom_id, "response": None, "error": error}
    return line if partial is None else line | {"partial": partial}


def partial_body(kind: LineKind, result: JobResult | None) -> dict[str, Any] | None:
    """Return the output of a job that ended without a completion; None if it has none."""
    if result is None:
        return None
    has_text = any(each.text or each.tool_calls for each in result.completions)
    if not has_text and result.decision is None:
        return None
    return _body(kind, result, None)


def response_body(kind: LineKind, result: JobResult) -> dict[str, Any]:
    """Return a result in OpenAI's form, as an answer that is made now."""
    return _body(kind, result, time.time_ns() // 1_000_000)


def _body(kind: LineKind, result: JobResult, finished_at_ms: int | None) -> dict[str, Any]:
    if kind is LineKind.EMBEDDINGS:
        return embedding_body(result) | {"id": result.id}
    if kind is LineKind.SCORE:
        return score_body(result)
    body = _BODIES[kind](result)
    body |= {"model": result.model, "id": result.id}
    if finished_at_ms is not None:
        body["created"] = finished_at_ms // 1000
    body["usage"] = result.usage.model_dump()
    return body | own_fields(result)


def own_fields(result: JobResult) -> dict[str, Any]:
    """Return what a result has that other APIs lack, such as a selection or an explanation."""
    fields: dict[str, Any] = {}
    if result.selection is not None:
        fields["selection"] = result.selection.model_dump()
    if result.watermarked:
        fields["watermarked"] = True
    if result.explain is not None:
        fields["explain"] = result.explain.model_dump(exclude_none=True)
    if result.beam_search is not None:
        fields["beam_search"] = result.beam_search.model_dump()
    return fields


def _chat(result: JobResult) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": _message(completion),
            "logprobs": chat_logprobs(result, completion),
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(result.completions)
    ]
    return {"object": "chat.completion", "choices": choices}


def _message(completion: Completion) -> dict[str, Any]:
    """Return the message of an answer, with its thoughts as other servers show them."""
    if completion.reasoning_content is None:
        return completion.message
    return completion.message | {"reasoning_content": completion.reasoning_content}


def _completion(result: JobResult) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "text": completion.text,
            "logprobs": completion_logprobs(result, completion),
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(result.completions)
    ]
    return {"object": "text_completion", "choices": choices}


def _decision(result: JobResult) -> dict[str, Any]:
    found = {} if result.decision is None else result.decision.model_dump()
    return {"object": "decision", **found}


_BODIES: Final[Mapping[LineKind, Callable[[JobResult], dict[str, Any]]]] = {
    LineKind.CHAT: _chat,
    LineKind.TEXT: _completion,
    LineKind.DECIDE: _decision,
}
