"""The chunks of a streamed chat or text completion."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from batchmill.producer import JobResult, OutputRestarted
from batchmill.producer.bulk.openai_logprobs import chat_logprobs, completion_logprobs
from batchmill.producer.bulk.result_lines import own_fields
from batchmill.producer.errors import BatchmillError
from batchmill.producer.job.line import LineKind
from batchmill.producer.results import Completion

from . import sse
from .api_errors import ApiError, api_error
from .backend import Backend
from .completion_request import CompletionOptions


class ChunkWriter:
    """Writes the chunks of one response; all have the same id and time."""

    def __init__(self, kind: LineKind, job_id: str, model: str, options: CompletionOptions) -> None:
        self._is_chat = kind is LineKind.CHAT
        self._include_usage = options.include_usage
        self._head = {
            "id": job_id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def begin(self, index: int) -> Iterator[bytes]:
        """Yield the chunk that opens a choice of a chat."""
        if self._is_chat:
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def text(self, index: int, text: str) -> bytes:
        """Return the chunk of a new piece of text."""
        return self._chunk(index, {"content": text} if self._is_chat else text)

    def thoughts(self, index: int, text: str | None) -> Iterator[bytes]:
        """Yield the chunk of a new piece of a chat's thoughts."""
        if self._is_chat and text:
            yield self._chunk(index, {"reasoning_content": text})

    def end(self, result: JobResult, index: int, completion: Completion) -> Iterator[bytes]:
        """Yield tool calls, log probabilities and the finish reason of a choice.

        The last chunk of the last choice has what the result has besides its choices.
        """
        if self._is_chat and completion.tool_calls:
            calls = [
                {"index": place, **call.model_dump()}
                for place, call in enumerate(completion.tool_calls)
            ]
            yield self._chunk(index, {"tool_calls": calls})
        logprobs = chat_logprobs if self._is_chat else completion_logprobs
        is_last = index == len(result.completions) - 1
        yield self._chunk(
            index,
            {} if self._is_chat else "",
            finish_reason=completion.finish_reason,
            logprobs=logprobs(result, completion),
            more=own_fields(result) if is_last else {},
        )

    def usage(self, result: JobResult) -> Iterator[bytes]:
        """Yield the chunk of the usage, if it was asked for."""
        if self._include_usage:
            yield sse.event(self._head | {"choices": [], "usage": result.usage.model_dump()})

    def _chunk(
        self,
        index: int,
        piece: Any,
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, ("delta" if self._is_chat else "text"): piece}
        choice |= {"logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return sse.event(self._head | {"choices": [choice]} | usage | dict(more or {}))


async def completion_chunks(
    backend: Backend, job_id: str, writer: ChunkWriter, *, cancels: bool
) -> AsyncGenerator[bytes, None]:
    """Yield a completion as it is generated, from its first choice on.

    Thoughts and text of the first choice come as they are checkpointed. Tool calls, log
    probabilities and the other choices are known at the job's end. An error after the first chunk
    is an event.
    """
    has_ended = False
    try:
        for chunk in writer.begin(0):
            yield chunk
        limit_s = backend.settings.gateway_wait_timeout_s
        async for piece in backend.client.stream(job_id, timeout_s=limit_s):
            for chunk in writer.thoughts(0, piece.reasoning_content):
                yield chunk
            if piece.text:
                yield writer.text(0, piece.text)
        result = await backend.client.result(job_id, timeout_s=0)
        has_ended = True
        for index, completion in enumerate(result.completions):
            if index:
                for chunk in writer.begin(index):
                    yield chunk
                for chunk in writer.thoughts(index, completion.reasoning_content):
                    yield chunk
                yield writer.text(index, completion.text)
            for chunk in writer.end(result, index, completion):
                yield chunk
        for chunk in writer.usage(result):
            yield chunk
        yield sse.DONE
    except BatchmillError as error:
        has_ended = True
        yield sse.event(stream_error(error).openai_body())
    finally:
        if cancels and not has_ended:
            backend.cancel_later(job_id)


def stream_error(error: Exception) -> ApiError:
    """Return the error that ends a stream."""
    if isinstance(error, OutputRestarted):
        return ApiError(500, str(error), code="output_restarted")
    return api_error(error) or ApiError(500, "the gateway failed", code="internal_error")
