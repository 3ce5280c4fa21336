"""From a line of a batch's file to its job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchmill.producer.errors import JobRejected
from batchmill.producer.files.record import Record
from batchmill.producer.job.line import BulkLine, LineKind, check_custom_id
from batchmill.producer.job.validation import parse_job
from batchmill.producer.store.api_keys import ApiKey

from .api_errors import ApiError, invalid
from .completion_request import read_completion
from .jobs import allowed_fields, check_allowed
from .message_request import read_message_request
from .openai_api import MESSAGES

_PARTS = frozenset({"custom_id", "method", "url", "body"})


def read_batch_line(record: Record, endpoint: str, key: ApiKey, default_model: str) -> BulkLine:
    """Return a line with its job, or with what is wrong with it.

    Args:
        record: the line as it was read.
        endpoint: the batch's, which each line must name.
        key: rights of the caller.
        default_model: of a line that names none.
    """
    is_message = endpoint == MESSAGES
    kind, custom_id = LineKind.CHAT if is_message else LineKind(endpoint), f"line-{record.line}"
    try:
        if record.data is None:
            raise JobRejected(record.problem, code="invalid_line")
        custom_id = _custom_id(record.data)
        read = _message_fields if is_message else _fields
        fields = read(record.data, kind, key)
        job = parse_job(fields)
        check_allowed(key, job, default_model)
    except JobRejected as error:
        return BulkLine(record.number, custom_id, kind, None, error)
    except ApiError as error:
        problem = JobRejected(str(error), code=error.code, param=error.param)
        return BulkLine(record.number, custom_id, kind, None, problem)
    return BulkLine(record.number, custom_id, kind, job)


def _message_fields(data: Mapping[str, Any], kind: LineKind, key: ApiKey) -> dict[str, Any]:
    """Return the fields of a request of Anthropic's batches."""
    if unknown := data.keys() - {"custom_id", "params"}:
        name = min(unknown)[:100]
        raise invalid(f"{name} is not part of a request", name)
    params = data.get("params")
    if not isinstance(params, dict):
        raise invalid("params must be an object", "params")
    fields, options = read_message_request(params)
    return _without_connection(fields, key, options.stream or options.cancel_on_disconnect)


def _custom_id(data: Mapping[str, Any]) -> str:
    if not data.get("custom_id"):
        raise invalid("custom_id is missing: it is the line's name in the output", "custom_id")
    return check_custom_id(data["custom_id"])


def _fields(data: Mapping[str, Any], kind: LineKind, key: ApiKey) -> dict[str, Any]:
    if unknown := data.keys() - _PARTS:
        name = min(unknown)[:100]
        raise invalid(f"{name} is not part of a batch line", name)
    if data.get("method") != "POST":
        raise invalid("method must be POST", "method")
    if data.get("url") != kind.value:
        raise invalid(f"url must be the endpoint of the batch, {kind.value}", "url")
    body = data.get("body")
    if not isinstance(body, dict):
        raise invalid("body must be an object", "body")
    fields, options = read_completion(kind, body)
    return _without_connection(fields, key, options.stream or options.cancel_on_disconnect)


def _without_connection(fields: dict[str, Any], key: ApiKey, is_connected: bool) -> dict[str, Any]:
    if is_connected:
        raise invalid("a line of a batch has no connection: leave stream out", "stream")
    if "idempotency_key" in fields:
        raise invalid("the batch knows its lines by their places: leave it out", "idempotency_key")
    # Batches must not hold up the requests that somebody waits for.
    return allowed_fields(key, fields, default_class="low")
