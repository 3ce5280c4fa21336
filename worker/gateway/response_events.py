"""The numbered events of a response, the same in every reading of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from batchmill.producer.errors import BatchmillError, JobUnfinished
from batchmill.producer.store.api_keys import ApiKey

from . import sse
from .backend import Backend
from .completion_stream import stream_error
from .response_record import (
    StoredResponse,
    call_item,
    load_response,
    message_item,
    output_items,
    reasoning_item,
    reasoning_part,
    response_id,
    text_part,
)
from .text_pieces import TextPieces

Event = dict[str, Any]
_LAST_EVENT = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.cancelled",
}


class _Writer:
    """Numbers the events. Thoughts come first; the text is one message; calls follow it."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._number = 0
        self._thoughts = ""
        self._text = ""
        self._has_message = False
        self._thought_pieces, self._text_pieces = TextPieces(), TextPieces()

    def number(self, kind: str, **fields: Any) -> Event:
        """Return the next event."""
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def output(self, thoughts: str, text: str) -> Iterator[Event]:
        """Yield the events of new thoughts and text; the first ones open their items."""
        if not self._has_message:  # later thoughts are in the last event only
            yield from self._think(self._thought_pieces.add(thoughts))
        yield from self._say(self._text_pieces.add(text))

    def end(self, response: StoredResponse) -> Iterator[Event]:
        """Yield the events that close the output, and the last one."""
        final = response.to_object()
        items = output_items(self._job_id, response.result) if response.result else []
        messages = [item for item in items if item["type"] == "message"]
        yield from self._say(self._text_pieces.end())
        if not self._has_message:
            yield from self._end_thoughts()
            if messages:
                yield from self._open_message()
        if self._has_message:
            incomplete = message_item(self._job_id, "incomplete", [text_part(self._text)])
            yield from self._close_message(messages[0] if messages else incomplete)
        index = bool(self._thoughts) + self._has_message
        for item in items:
            if item["type"] == "function_call":
                yield from self._call(index, item)
                index += 1
        yield self.number(_LAST_EVENT[response.status], response=final)

    def _think(self, pieces: list[str]) -> Iterator[Event]:
        for piece in pieces:
            if not self._thoughts:
                item = reasoning_item(self._job_id, "in_progress", None)
                yield self.number("response.output_item.added", output_index=0, item=item)
                part = reasoning_part("")
                yield self._part(item, "response.content_part.added", part=part)
            self._thoughts += piece
            item = reasoning_item(self._job_id, "in_progress", None)
            yield self._part(item, "response.reasoning_text.delta", delta=piece)

    def _end_thoughts(self) -> Iterator[Event]:
        yield from self._think(self._thought_pieces.end())
        if self._thoughts:
            item = reasoning_item(self._job_id, "completed", self._thoughts)
            part = item["content"][0]
            yield self._part(item, "response.reasoning_text.done", text=part["text"])
            yield self._part(item, "response.content_part.done", part=part)
            yield self.number("response.output_item.done", output_index=0, item=item)

    def _say(self, pieces: list[str]) -> Iterator[Event]:
        if pieces and not self._has_message:
            yield from self._end_thoughts()
            yield from self._open_message()
        for piece in pieces:
            self._text += piece
            item = message_item(self._job_id, "", [])
            yield self._part(item, "response.output_text.delta", delta=piece, logprobs=[])

    def _open_message(self) -> Iterator[Event]:
        self._has_message = True
        item = message_item(self._job_id, "in_progress", [])
        index = int(bool(self._thoughts))
        yield self.number("response.output_item.added", output_index=index, item=item)
        yield self._part(item, "response.content_part.added", part=text_part(""))

    def _close_message(self, item: Event) -> Iterator[Event]:
        part = item["content"][0]
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._part(item, "response.output_text.done", **done)
        yield self._part(item, "response.content_part.done", part=part)
        index = int(bool(self._thoughts))
        yield self.number("response.output_item.done", output_index=index, item=item)

    def _call(self, index: int, item: Event) -> Iterator[Event]:
        place = int(item["id"].rpartition("_")[2])
        opened = call_item(self._job_id, place, item["call_id"], item["name"], "", "in_progress")
        where = {"output_index": index, "item_id": item["id"]}
        yield self.number("response.output_item.added", output_index=index, item=opened)
        yield self.number(
            "response.function_call_arguments.delta", delta=item["arguments"], **where
        )
        yield self.number(
            "response.function_call_arguments.done",
            arguments=item["arguments"],
            name=item["name"],
            **where,
        )
        yield self.number("response.output_item.done", output_index=index, item=item)

    def _part(self, item: Event, kind: str, **fields: Any) -> Event:
        index = int(item["type"] == "message" and bool(self._thoughts))
        where = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return self.number(kind, **where, **fields)


async def response_stream(
    backend: Backend,
    key: ApiKey,
    response: StoredResponse,
    *,
    after: int = -1,
    cancels: bool = False,
    forgets: bool = False,
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a response after a number, until it has ended.

    Args:
        backend: the queue.
        key: the caller's.
        response: as it was read.
        after: number of the last event that the caller has; -1 for all.
        cancels: whether the response is cancelled if the caller goes away.
        forgets: whether it is forgotten after its last event.
    """
    has_ended = False
    try:
        async for event in _events(backend, key, response):
            if event["sequence_number"] > after:
                yield sse.event(event, event["type"])
        has_ended = True
        if forgets:
            backend.run_later(backend.client.forget(response.job_id))
    finally:
        if cancels and not has_ended:
            backend.cancel_later(response.job_id)


async def _events(
    backend: Backend, key: ApiKey, response: StoredResponse
) -> AsyncGenerator[Event, None]:
    writer = _Writer(response.job_id)
    first = "queued" if response.details["background"] else "in_progress"
    yield writer.number("response.created", response=response.opening(first))
    is_started = False
    try:
        limit_s = backend.settings.gateway_wait_timeout_s
        try:
            async for piece in backend.client.stream(response.job_id, timeout_s=limit_s):
                if not is_started:
                    is_started = True
                    yield _in_progress(writer, response)
                for event in writer.output(piece.reasoning_content, piece.text):
                    yield event
        except JobUnfinished:
            pass  # the last event tells of it
        if not is_started:
            yield _in_progress(writer, response)
        ended = await load_response(backend, key, response_id(response.job_id))
        for event in writer.end(ended):
            yield event
    except BatchmillError as error:
        told = stream_error(error)
        yield writer.number("error", code=told.code, message=str(told), param=None)


def _in_progress(writer: _Writer, response: StoredResponse) -> Event:
    return writer.number("response.in_progress", response=response.opening("in_progress"))
