"""Checks a queue element before kombu and Celery read it.

Any program that can write to Redis can push onto a queue. A message without a content type or an
id, or one that is not JSON, makes Celery's worker die or loop; here it is refused beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

from celery.utils.time import maybe_iso8601
from kombu.utils.json import dumps as kombu_dumps

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.worker.errors import MalformedMessage

from .message_body import MAX_MESSAGE_BYTES, TOO_LARGE, read_body

_NUM_BODY_PARTS = 3
_NUM_TIME_LIMITS = 2
#: Celery's own tasks behind `map`, `starmap` and `chunks`, which call another task in their worker.
_MAPS = ("celery.map", "celery.starmap")
#: An id becomes a part of keys, logs and events.
MAX_ID_CHARS = 255


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """A checked queue element.

    Attributes:
        message: the message as kombu takes it; its body is not compressed, and it has no `eta`.
        args: positional arguments of the task.
        kwargs: keyword arguments of the task.
        embed: what follows the task in a workflow.
        not_before_ms: end of the task's delay, milliseconds of unix time.
        expires_ms: when the task expires unless it has started, milliseconds of unix time.
    """

    message: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]
    embed: dict[str, Any]
    not_before_ms: int | None
    expires_ms: int | None

    @property
    def headers(self) -> dict[str, Any]:
        """Celery's headers: the task's id, group, limits and more."""
        headers: dict[str, Any] = self.message["headers"]
        return headers

    @property
    def delivery_tag(self) -> str:
        """Kombu's id of the message."""
        tag: str = self.message["properties"]["delivery_tag"]
        return tag

    @property
    def is_announcement(self) -> bool:
        """Whether it names a job that has a record. Otherwise the job is in the message."""
        job = self.kwargs.get("job", self.args[0] if self.args else None)
        return isinstance(job, str)

    def with_embed(self, embed: dict[str, Any]) -> QueueMessage:
        """Return the message with something else that follows the task."""
        body = kombu_dumps([self.args, self.kwargs, embed])
        properties = {**self.message["properties"], "body_encoding": None}
        message = {**self.message, "body": body, "properties": properties}
        return replace(self, message=message, embed=embed)


def read_queue_message(element: bytes) -> QueueMessage:
    """Return the message in a queue element.

    Raises:
        MalformedMessage: no worker can ever run the element.
    """
    if len(element) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(
            TOO_LARGE,
            f"the message has {len(element)} bytes, the limit is {MAX_MESSAGE_BYTES}; shorten the "
            "task",
        )
    message = _read_json(element, "not_json", "the element is not JSON")
    if not isinstance(message, dict):
        raise MalformedMessage("not_a_message", "the element is JSON, but not an object")
    if b"\\u" in element:
        _check_encodable({name: value for name, value in message.items() if name != "body"})
    _check_properties(message.get("properties"))
    parts = read_body(message)
    if isinstance(parts, dict) and "task" in parts and not message.get("headers"):
        message, parts = _as_protocol_2(message, parts)
    headers = _check_headers(message.get("headers"))
    args, kwargs, embed = _check_arguments(parts)
    if headers.get("compression") is not None:
        message = _uncompressed(message, parts)
        headers = message["headers"]
    # Celery would keep a delayed task in a timer of this process; the job's record keeps it.
    eta, expires = headers.get("eta"), headers.get("expires")
    headers["eta"] = None
    return QueueMessage(
        message,
        args,
        kwargs,
        embed,
        not_before_ms=_unix_ms(eta),
        expires_ms=_unix_ms(expires),
    )


def _uncompressed(message: dict[str, Any], parts: Any) -> dict[str, Any]:
    """Return a message whose body is not compressed: kombu would decompress it without a limit."""
    headers = {name: value for name, value in message["headers"].items() if name != "compression"}
    properties = {**message["properties"], "body_encoding": None}
    return {**message, "headers": headers, "properties": properties, "body": kombu_dumps(parts)}


def _unix_ms(moment: str | None) -> int | None:
    """Return a moment in Unix milliseconds; None for none, as an empty text is to Celery."""
    at = maybe_iso8601(moment)
    if at is None:
        return None
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


def _check_encodable(values: dict[str, Any]) -> None:
    """Refuse text that JSON can escape but UTF-8 cannot encode: no key or command can hold it."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedMessage(
            "lone_surrogate", "the message has a lone surrogate, which UTF-8 cannot encode"
        ) from None


def _check_properties(properties: Any) -> None:
    if not isinstance(properties, dict):
        raise MalformedMessage("no_properties", "properties is missing or not an object")
    if not _is_text(properties.get("delivery_tag")):
        raise MalformedMessage(
            "no_delivery_tag", "properties.delivery_tag is missing: give each message a unique one"
        )
    info = properties.get("delivery_info")
    if not isinstance(info, dict) or not isinstance(info.get("exchange"), str):
        raise MalformedMessage(
            "no_delivery_info",
            'properties.delivery_info must have "exchange" ("") and "routing_key"',
        )
    if not _is_text(info.get("routing_key")):
        raise MalformedMessage(
            "no_delivery_info", "properties.delivery_info.routing_key is missing: name the queue"
        )


def _check_headers(headers: Any) -> dict[str, Any]:
    """Check the headers and return them."""
    if not isinstance(headers, dict):
        raise MalformedMessage("no_headers", "headers is missing or not an object")
    if not _is_text(headers.get("id")):
        raise MalformedMessage("no_id", "headers.id is missing: it must be the task's id, a string")
    if (num_chars := len(headers["id"])) > MAX_ID_CHARS:
        raise MalformedMessage(
            "bad_id",
            f"headers.id has {num_chars} characters, the limit is {MAX_ID_CHARS}: shorten it",
        )
    task = headers.get("task")
    if not _is_text(task):
        raise MalformedMessage("no_task", f"headers.task is missing: it must be {TASK_NAME}")
    if task != TASK_NAME:
        remedy = "; send a group instead" if task in _MAPS else ""
        raise MalformedMessage(
            "unknown_task",
            f"headers.task is {str(task)[:100]!r}; this queue takes {TASK_NAME}{remedy}",
        )
    for name, is_good in _OPTIONAL_HEADERS.items():
        value = headers.get(name)
        if value is not None and not is_good(value):
            raise MalformedMessage(
                "bad_header", f"headers.{name} has a value that Celery does not send"
            )
    return headers


def _is_moment(value: Any) -> bool:
    try:
        return isinstance(value, str) and ((at_ms := _unix_ms(value)) is None or at_ms > 0)
    except (ValueError, OverflowError):
        return False


def _is_time_limits(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == _NUM_TIME_LIMITS
        and all(limit is None or type(limit) in (int, float) for limit in value)
    )


#: Optional headers that Celery reads unchecked, and the check of each.
_OPTIONAL_HEADERS: dict[str, Callable[[Any], bool]] = {
    "eta": _is_moment,
    "expires": _is_moment,
    "timelimit": _is_time_limits,
    "group": lambda value: isinstance(value, str),
    "root_id": lambda value: isinstance(value, str),
    "parent_id": lambda value: isinstance(value, str),
    "shadow": lambda value: isinstance(value, str),
    "retries": lambda value: type(value) is int,
    "stamped_headers": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "stamps": lambda value: isinstance(value, dict),
}


def _as_protocol_2(message: dict[str, Any], task: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Convert a message of Celery's protocol 1, which has no headers, to protocol 2.

    Libraries of other languages still send it (celery-node can).
    """
    names = ("task", "id", "eta", "expires", "retries", "timelimit")
    headers = {name: task[name] for name in names if task.get(name) is not None}
    if task.get("taskset") is not None:
        headers["group"] = task["taskset"]
    follow_ups = ("callbacks", "errbacks", "chord")
    embed = {name: task[name] for name in follow_ups if task.get(name) is not None}
    parts = [task.get("args") or [], task.get("kwargs") or {}, embed]
    try:
        _check_encodable(headers)
        body = json.dumps(parts)
    except TypeError:  # kombu turns "__type__" objects into values that are not JSON
        raise MalformedMessage("bad_body", "body holds values that are not JSON") from None
    properties = {**message["properties"], "body_encoding": None}
    return {**message, "headers": headers, "body": body, "properties": properties}, parts


def _check_arguments(parts: Any) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Check a task's arguments and what follows it, and return them."""
    if not isinstance(parts, list) or len(parts) != _NUM_BODY_PARTS:
        raise MalformedMessage("bad_body", "body must be [args, kwargs, embed]")
    args, kwargs, embed = parts
    if (
        not isinstance(args, list)
        or not isinstance(kwargs, dict)
        or not isinstance(embed, dict | None)
    ):
        raise MalformedMessage("bad_body", "body must be [list, object, object]")
    _check_follow_ups(embed or {})
    return args, kwargs, embed or {}


def _check_follow_ups(embed: dict[str, Any]) -> None:
    """Refuse signatures that Celery cannot send: it would fail only after the job."""
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embed.get(name) or []
        if not isinstance(signatures, list) or not all(map(_is_signature, signatures)):
            raise MalformedMessage("bad_embed", f"{name} must be a list of Celery signatures")
    if embed.get("chord") and not _is_signature(embed["chord"]):
        raise MalformedMessage("bad_embed", "chord must be a Celery signature")


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("task"))


def _read_json(data: str | bytes, code: str, message: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedMessage(code, message) from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
