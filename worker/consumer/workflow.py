"""A plain Celery task's place in a workflow, and the tasks that follow: kept in its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from kombu.utils.json import dumps

from batchmill.producer.protocol.content import SEALED_NAME, Cipher, Place, Unopened
from batchmill.producer.protocol.opening import open_json
from batchmill.producer.protocol.records import JobRecord

from .queue_message import QueueMessage

#: Headers that every message has, with the values of a task outside any workflow.
_DEFAULTS: dict[str, Any] = {"parent_id": None, "group": None, "timelimit": [None, None]}
#: Headers that only some messages have.
_OPTIONAL = ("group_index", "replaced_task_nesting", "stamped_headers", "stamps")
#: Of the ids that callbacks get.
_NAMESPACE = UUID("5d0f1c0a-7a86-4d5e-9f5c-3c1a8a0f8a51")
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")


@dataclass(frozen=True, slots=True)
class Workflow:
    """A plain Celery task's place in a workflow, and the tasks that follow, as in its record.

    Attributes:
        headers: JSON of the message headers that say where the task belongs.
        embed: JSON of its callbacks, errbacks, chain and chord.
        is_sealed: what follows is sealed, and could not be opened.
    """

    headers: str
    embed: str
    is_sealed: bool = False


def read_workflow(request: Mapping[str, Any], embed: Mapping[str, Any] | None) -> Workflow | None:
    """Return a task's place in a workflow, from its message; None if it stands alone."""
    headers = {name: request.get(name) or default for name, default in _DEFAULTS.items()}
    optional = {name: request[name] for name in _OPTIONAL if request.get(name) is not None}
    follow_ups = {name: (embed or {}).get(name) for name in _FOLLOW_UPS}
    follow_ups["callbacks"] = [
        _with_id(callback, f"{request['id']}:{number}")
        for number, callback in enumerate(follow_ups["callbacks"] or ())
    ] or None
    headers["timelimit"] = list(headers["timelimit"])
    # Stamps matter outside a workflow, too: a revocation may name them.
    stands_alone = headers == _DEFAULTS and not any(
        (*follow_ups.values(), request.get("stamped_headers"))
    )
    is_sealed = SEALED_NAME in (embed or {})
    if stands_alone and not is_sealed and request.get("root_id") in (None, request["id"]):
        return None
    headers = {"root_id": request.get("root_id") or request["id"], **headers, **optional}
    return Workflow(dumps(headers), dumps(follow_ups), is_sealed)


def open_follow_ups(message: QueueMessage, cipher: Cipher) -> QueueMessage:
    """Return the announcement of a task whose follow-ups are opened, if they are sealed.

    What cannot be opened stays as it is. If a key is missing, the claim of the job is refused; if
    it was changed, a sweep reports the end of the job as a failure.
    """
    if SEALED_NAME not in message.embed:
        return message
    place = Place(message.headers["id"], "celery_embed")
    found = open_json(cipher, json.dumps(message.embed).encode(), place)
    return message if isinstance(found, Unopened) else message.with_embed(json.loads(found))


def _with_id(signature: Any, name: str) -> Any:
    """Return a callback with an id: whoever reports the end sends the same task, so only once.

    Celery gives the tasks of a chain and the body of a chord their ids when it makes them, but
    those of `link` only when it sends them. An errback may follow each failure of a job that is
    retried, so its tasks keep ids of their own.
    """
    if not isinstance(signature, dict) or signature.get("subtask_type"):
        return signature
    options = signature.get("options") or {}
    if options.get("task_id"):
        return signature
    return {**signature, "options": {**options, "task_id": str(uuid5(_NAMESPACE, name))}}


def workflow_request(record: JobRecord) -> dict[str, Any]:
    """Return the request of a task from its record, as Celery's tracer takes it."""
    request: dict[str, Any] = {"id": record.id, "root_id": record.id, "delivery_info": {}}
    for part in (record.celery_headers, record.celery_embed):
        request.update(json.loads(part or b"{}"))
    return request | {"ignore_result": not record.celery_result}
