"""A plain Celery task's place in a workflow, and the tasks that follow: kept in its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kombu.utils.json import dumps

from batchmill.producer.protocol.records import JobRecord
from batchmill.worker.jobs.outcome import Workflow

#: Headers that every message has, with the values of a task outside any workflow.
_DEFAULTS: dict[str, Any] = {"parent_id": None, "group": None, "timelimit": [None, None]}
#: Headers that only some messages have.
_OPTIONAL = ("group_index", "replaced_task_nesting", "stamped_headers", "stamps")
_FOLLOW_UPS = ("callbacks", "errbacks", "chain", "chord")


def read_workflow(request: Mapping[str, Any], embed: Mapping[str, Any] | None) -> Workflow | None:
    """Return a task's place in a workflow, from its message; None if it stands alone."""
    headers = {name: request.get(name) or default for name, default in _DEFAULTS.items()}
    optional = {name: request[name] for name in _OPTIONAL if request.get(name) is not None}
    follow_ups = {name: (embed or {}).get(name) for name in _FOLLOW_UPS}
    headers["timelimit"] = list(headers["timelimit"])
    stands_alone = headers == _DEFAULTS and not any(follow_ups.values())
    if stands_alone and request.get("root_id") in (None, request["id"]):
        return None
    headers = {"root_id": request.get("root_id") or request["id"], **headers, **optional}
    return Workflow(dumps(headers), dumps(follow_ups))


def workflow_request(record: JobRecord) -> dict[str, Any]:
    """Return the request of a task from its record, as Celery's tracer takes it."""
    request: dict[str, Any] = {"id": record.id, "root_id": record.id, "delivery_info": {}}
    for part in (record.celery_headers, record.celery_embed):
        request.update(json.loads(part or b"{}"))
    return request | {"ignore_result": not record.celery_result}
