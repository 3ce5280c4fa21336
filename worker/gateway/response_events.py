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
    """Numbers the events. The text is one message; calls follow it."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._number = 0
        self._text = ""
        self._has_message = False

    def number(self, kind: str, **fields: Any) -> Event:
        """Return the next event."""
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def text(self, pieces: list[str]) -> Iterator[Event]:
        """Yield the events of new text; the first ones open the message."""
        if pieces and not self._has_message:
            yield from self._open_message()
        for piece in pieces:
            self._text += piece
            yield self._part("response.output_text.delta", delta=piece, logprobs=[])

    def end(self, response: StoredResponse) -> Iterator[Event]:
        """Yield the events that close the output, and the last one."""
        final = response.to_object()
        items = output_items(self._job_id, response.result) if response.result else []
        if not self._has_message and items and items[0]["type"] == "message":
            yield from self._open_message()
        if self._has_message:
            message = message_item(self._job_id, "incomplete", [text_part(self._text)])
            if items and items[0]["type"] == "message":
                message = items[0]
            yield from self._close_message(message)
        index = 1 if self._has_message else 0
        for item in items:
            if item["type"] == "function_call":
                yield from self._call(index, item)
                index += 1
        yield self.number(_LAST_EVENT[response.status], response=final)

    def _open_message(self) -> Iterator[Event]:
        self._has_message = True
        item = message_item(self._job_id, "in_progress", [])
        yield self.number("response.output_item.added", output_index=0, item=item)
        yield self._part("response.content_part.added", part=text_part(""))

    def _close_message(self, item: Event) -> Iterator[Event]:
        part = item["content"][0]
        yield self._part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._part("response.content_part.done", part=part)
        yield self.number("response.output_item.done", output_index=0, item=item)

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

    def _part(self, kind: str, **fields: Any) -> Event:
        item_id = message_item(self._job_id, "", [])["id"]
        return self.number(kind, item_id=item_id, output_index=0, content_index=0, **fields)


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
    writer, pieces = _Writer(response.job_id), TextPieces()
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
                for event in writer.text(pieces.add(piece.text)):
                    yield event
        except JobUnfinished:
            pass  # the last event tells of it
        if not is_started:
            yield _in_progress(writer, response)
        for event in writer.text(pieces.end()):
            yield event
        ended = await load_response(backend, key, response_id(response.job_id))
        for event in writer.end(ended):
            yield event
    except BatchmillError as error:
        told = stream_error(error)
        yield writer.number("error", code=told.code, message=str(told), param=None)


def _in_progress(writer: _Writer, response: StoredResponse) -> Event:
    return writer.number("response.in_progress", response=response.opening("in_progress"))
