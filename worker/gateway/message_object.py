"""Anthropic's object of a message, and the events of a streamed one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from batchmill.producer import JobResult
from batchmill.producer.errors import BatchmillError

from . import sse
from .backend import Backend
from .completion_stream import stream_error


def message_id(job_id: str) -> str:
    """Return the id of a job's message."""
    return f"msg_{job_id.removeprefix('gen_')}"


def message_object(result: JobResult) -> dict[str, Any]:
    """Return the message of a completed job."""
    completion = result.completions[0]
    content: list[dict[str, Any]] = []
    if completion.text or not completion.tool_calls:
        content.append({"type": "text", "text": completion.text})
    content += [
        {
            "type": "tool_use",
            "id": call.id,
            "name": call.function.name,
            "input": json.loads(call.function.arguments),
        }
        for call in completion.tool_calls
    ]
    return _message(result.id, result.model, content, **_stop(result), usage=_usage(result))


def _message(job_id: str, model: str, content: list[dict[str, Any]], **end: Any) -> dict[str, Any]:
    return {
        "id": message_id(job_id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **end,
    }


def _stop(result: JobResult) -> dict[str, Any]:
    """Return why the output ended, in Anthropic's words."""
    sequence = result.stop_reason if isinstance(result.stop_reason, str) else None
    if result.finish_reason == "length":
        reason = "max_tokens"
    elif result.tool_calls:
        reason = "tool_use"
    else:
        reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(result: JobResult) -> dict[str, Any]:
    """Return the usage; Anthropic counts cached tokens of the prompt apart from the others."""
    cached = result.usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": result.usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": result.usage.completion_tokens,
    }


async def message_stream(
    backend: Backend, job_id: str, model: str, *, cancels: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a message as it is generated; calls of tools come at its end."""
    usage = {"input_tokens": 0, "output_tokens": 0}
    opening = _message(job_id, model, [], stop_reason=None, stop_sequence=None, usage=usage)
    has_ended, has_text = False, False
    try:
        yield _event("message_start", message=opening)
        limit_s = backend.settings.gateway_wait_timeout_s
        async for piece in backend.client.stream(job_id, timeout_s=limit_s):
            if piece.text and not has_text:
                has_text = True
                yield _block_start(0, {"type": "text", "text": ""})
            if piece.text:
                yield _delta(0, {"type": "text_delta", "text": piece.text})
        result = await backend.client.result(job_id, timeout_s=0)
        has_ended = True
        for event in _ending(message_object(result), has_text=has_text):
            yield event
    except BatchmillError as error:
        has_ended = True
        yield sse.event(stream_error(error).anthropic_body(job_id), "error")
    finally:
        if cancels and not has_ended:
            backend.cancel_later(job_id)


def _ending(message: dict[str, Any], *, has_text: bool) -> list[bytes]:
    """Return the events after the last text."""
    events = []
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            if not has_text:
                events.append(_block_start(index, {"type": "text", "text": ""}))
        else:
            events.append(_block_start(index, {**block, "input": {}}))
            text = json.dumps(block["input"], ensure_ascii=False)
            events.append(_delta(index, {"type": "input_json_delta", "partial_json": text}))
        events.append(_event("content_block_stop", index=index))
    stop = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    events.append(_event("message_delta", delta=stop, usage=message["usage"]))
    events.append(_event("message_stop"))
    return events


def _block_start(index: int, block: dict[str, Any]) -> bytes:
    return _event("content_block_start", index=index, content_block=block)


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return sse.event({"type": kind, **fields}, kind)
