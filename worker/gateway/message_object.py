"""Anthropic's object of a message, and the events of a streamed one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from batchmill.producer import JobResult
from batchmill.producer.bulk.result_lines import OWN_FIELDS, own_fields
from batchmill.producer.errors import BatchmillError

from . import sse
from .backend import Backend
from .completion_stream import stream_error

#: Blocks as a stream opens them. There is nothing to sign: models think again in each turn.
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


def message_id(job_id: str) -> str:
    """Return the id of a job's message."""
    return f"msg_{job_id.removeprefix('gen_')}"


def message_object(result: JobResult) -> dict[str, Any]:
    """Return the message of a completed job."""
    completion = result.completions[0]
    content: list[dict[str, Any]] = []
    if completion.reasoning_content:
        content.append({**_EMPTY["thinking"], "thinking": completion.reasoning_content})
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
    end = {**_stop(result), "usage": _usage(result), **own_fields(result)}
    return _message(result.id, result.model, content, **end)


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


class _Blocks:
    """Writes the blocks of thoughts and text as they grow; one is open at a time."""

    def __init__(self) -> None:
        self._open = ""
        self._index = -1

    def add(self, kind: str, text: str) -> list[bytes]:
        """Return the events of new text of a kind of block; the first one opens the block."""
        if not text or (kind == "thinking" and self._open == "text"):
            return []  # thoughts after the text are in no stream
        events = [] if kind == self._open else [*self.close(), *self.open(kind, _EMPTY[kind])]
        return [*events, _delta(self._index, {"type": f"{kind}_delta", kind: text})]

    def open(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """Return the event that opens a block."""
        self._open = kind
        self._index += 1
        fields = {"index": self._index, "content_block": block}
        return [_event("content_block_start", **fields)]

    def close(self) -> list[bytes]:
        """Return the events that close the open block, if there is one."""
        if not self._open:
            return []
        events = []
        if self._open == "thinking":
            events.append(_delta(self._index, {"type": "signature_delta", "signature": ""}))
        self._open = ""
        return [*events, _event("content_block_stop", index=self._index)]

    def end(self, message: dict[str, Any]) -> list[bytes]:
        """Return the events after the last text."""
        events = []
        has_text = self._open == "text"
        for block in message["content"]:
            if block["type"] == "text" and not has_text:
                events += [*self.close(), *self.open("text", _EMPTY["text"])]
            elif block["type"] == "tool_use":
                events += [*self.close(), *self.open("tool_use", {**block, "input": {}})]
                text = json.dumps(block["input"], ensure_ascii=False)
                delta = {"type": "input_json_delta", "partial_json": text}
                events.append(_delta(self._index, delta))
        events += self.close()
        stop = {name: message[name] for name in ("stop_reason", "stop_sequence")}
        more = {name: message[name] for name in OWN_FIELDS if name in message}
        events.append(_event("message_delta", delta=stop, usage=message["usage"], **more))
        events.append(_event("message_stop"))
        return events


async def message_stream(
    backend: Backend, job_id: str, model: str, *, cancels: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a message as it is generated; calls of tools come at its end."""
    usage = {"input_tokens": 0, "output_tokens": 0}
    opening = _message(job_id, model, [], stop_reason=None, stop_sequence=None, usage=usage)
    has_ended, blocks = False, _Blocks()
    try:
        yield _event("message_start", message=opening)
        limit_s = backend.settings.gateway_wait_timeout_s
        async for piece in backend.client.stream(job_id, timeout_s=limit_s):
            for event in blocks.add("thinking", piece.reasoning_content):
                yield event
            for event in blocks.add("text", piece.text):
                yield event
        result = await backend.client.result(job_id, timeout_s=0)
        has_ended = True
        for event in blocks.end(message_object(result)):
            yield event
    except BatchmillError as error:
        has_ended = True
        yield sse.event(stream_error(error).anthropic_body(job_id), "error")
    finally:
        if cancels and not has_ended:
            backend.cancel_later(job_id)


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return sse.event({"type": kind, **fields}, kind)
