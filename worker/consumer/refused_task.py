"""Reports a refused plain Celery task to its sender, as a stock worker reports a failed one."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import structlog
from celery import Celery, states
from celery.app.task import Context
from kombu.exceptions import OperationalError

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobFailed, MalformedMessage

from .message_body import MAX_MESSAGE_BYTES, read_body
from .queue_message import MAX_ID_CHARS

_log = structlog.stdlib.get_logger("batchmill.refused_task")
#: A message that is too long to be parsed still says at its end whose it is: Celery's senders write
#: the properties after the body, and the id of the task as correlation id.
_TAIL_BYTES = 64 << 10
_CORRELATION_ID = re.compile(rb'"correlation_id": ?"([\w-]{1,4096})"', re.ASCII)
#: Longest id of a refused task for which a result is stored. No job may have an id of this length,
#: but the sender waits for a result all the same.
_MAX_SENT_ID_CHARS = 4096


class RefusedTasks:
    """Stores FAILURE with the reason for tasks that never get a record."""

    def __init__(self, app: Celery, store: JobStore, *, node_name: str) -> None:
        """Bind to the app with the result backend, to the job store and to the worker's name."""
        self._app = app
        self._store = store
        self._node_name = node_name

    def report(self, request: dict[str, Any], failure: JobFailed) -> None:
        """Report a failure to the sender, its chord and its errbacks. Blocks on Redis.

        Nothing is reported if the task's id has a job or a result.

        Args:
            request: headers and embedded signatures of the message, as far as they could be read.
            failure: the reason.
        """
        backend: Any = self._app.backend
        task_id = request["id"]
        known = backend.get_task_meta(task_id, cache=False)["status"]
        if known in states.READY_STATES or self._store.load(task_id) is not None:
            return
        _log.info("task_refused", task_id=task_id[:MAX_ID_CHARS], code=failure.code)
        context = Context({"delivery_info": {}, **request})
        wants_result = not request.get("ignore_result")
        backend.mark_as_failure(task_id, failure, request=context, store_result=wants_result)
        if context.group and not context.chord and wants_result:
            # The body could not be read, and with it not what follows the chord. The part fails
            # all the same: a part that returns later passes it on.
            with suppress(Exception):
                backend.on_chord_part_return(context, states.FAILURE, failure)
        self._show(task_id, failure)

    def _show(self, task_id: str, failure: JobFailed) -> None:
        """Send the events that make the task visible in Flower."""
        with (
            suppress(OperationalError, OSError),
            self._app.connection_for_write() as connection,
            self._app.events.Dispatcher(connection, hostname=self._node_name) as dispatcher,
        ):
            shown = {"uuid": task_id, "name": TASK_NAME, "args": "()", "kwargs": "{...}"}
            dispatcher.send("task-received", **shown)
            dispatcher.send("task-failed", uuid=task_id, exception=repr(failure), traceback="")


def read_sender(element: bytes) -> dict[str, Any] | None:
    """Return the request in a refused element, or None if no sender can wait for its result."""
    if len(element) > MAX_MESSAGE_BYTES:
        found = _CORRELATION_ID.search(element[-_TAIL_BYTES:])
        return None if found is None else {"id": found[1].decode()}
    try:
        message = json.loads(element)
        headers = message["headers"] or {}
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    request = dict(headers) if isinstance(headers, dict) else {}
    try:
        parts = read_body(message)
    except (MalformedMessage, KeyError, TypeError, AttributeError):
        parts = None
    if isinstance(parts, dict) and not request:
        request = parts  # Celery's protocol 1 has all of it in the body
    elif isinstance(parts, list) and parts and isinstance(parts[-1], dict):
        request |= parts[-1]
    return request if _is_usable_id(request.get("id")) else None


def _is_usable_id(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SENT_ID_CHARS:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
