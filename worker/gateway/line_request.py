"""From a line of a batch's file to its job."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchmill.producer.errors import JobRejected
from batchmill.producer.files.record import Record
from batchmill.producer.job.line import BulkLine, LineKind, check_custom_id
from batchmill.producer.job.validation import parse_job
from batchmill.producer.store.api_keys import ApiKey

from .adapters import RegisteredNames, check_names, resolve_model
from .api_errors import ApiError, invalid
from .body_names import body_names
from .completion_request import read_completion
from .decisions import read_decision
from .jobs import allowed_fields, check_allowed
from .message_request import read_message_request
from .openai_api import DECISIONS, MESSAGES, RESPONSES
from .response_record import response_details
from .response_request import read_response
from .spec.body import unsupported
from .vectors import POOLED, read_pooled

_OF_CONNECTIONS = ("stream", "cancel_on_disconnect", "background")
_PARTS = frozenset({"custom_id", "method", "url", "body"})


def read_batch_line(
    record: Record,
    endpoint: str,
    key: ApiKey,
    default_model: str,
    registered: RegisteredNames,
    served: Collection[str],
) -> BulkLine:
    """Return a line with its job, or with what is wrong with it.

    Args:
        record: the line as it was read.
        endpoint: the batch's, which each line must name.
        key: rights of the caller.
        default_model: of a line that names none.
        registered: adapters and vectors that the caller may use.
        served: names of models, which no adapter of the same name hides.
    """
    kind = LineKind(endpoint) if endpoint in tuple(LineKind) else LineKind.CHAT
    custom_id = f"line-{record.line}"
    try:
        if record.data is None:
            raise JobRejected(record.problem, code="invalid_line")
        custom_id = _custom_id(record.data)
        body = _params(record.data) if endpoint == MESSAGES else _body(record.data, endpoint)
        fields, details = _read(endpoint, body)
        fields = dict(resolve_model(fields, registered.adapters, served))
        with body_names(endpoint):
            job = parse_job(_without_connection(fields, key))
        check_allowed(key, job, default_model)
        check_names(job, registered, default_model)
    except JobRejected as error:
        return BulkLine(record.number, custom_id, kind, None, error)
    except ApiError as error:
        problem = JobRejected(str(error), code=error.code, param=error.param)
        return BulkLine(record.number, custom_id, kind, None, problem)
    return BulkLine(record.number, custom_id, kind, job, gateway=details)


def _params(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message in a request of Anthropic's batches."""
    if unknown := data.keys() - {"custom_id", "params"}:
        name = min(unknown)[:100]
        raise invalid(f"{name} is not part of a request", name)
    params = data.get("params")
    if not isinstance(params, dict):
        raise invalid("params must be an object", "params")
    return params


def _body(data: Mapping[str, Any], endpoint: str) -> Mapping[str, Any]:
    """Return the body in a line of OpenAI's batches."""
    if unknown := data.keys() - _PARTS:
        name = min(unknown)[:100]
        raise invalid(f"{name} is not part of a batch line", name)
    if data.get("method") != "POST":
        raise invalid("method must be POST", "method")
    if data.get("url") != endpoint:
        raise invalid(f"url must be the endpoint of the batch, {endpoint}", "url")
    body = data.get("body")
    if not isinstance(body, dict):
        raise invalid("body must be an object", "body")
    return body


def _custom_id(data: Mapping[str, Any]) -> str:
    if not data.get("custom_id"):
        raise invalid("custom_id is missing: it is the line's name in the output", "custom_id")
    return check_custom_id(data["custom_id"])


def _read(endpoint: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the fields of the job, and what its record says for the gateway."""
    for name in _OF_CONNECTIONS:
        if body.get(name):
            raise invalid(f"a line of a batch has no connection: leave {name} out", name)
    if endpoint == MESSAGES:
        return read_message_request(body)[0], ""
    if endpoint in POOLED:
        return read_pooled(*POOLED[endpoint], body)[0], ""
    if endpoint == DECISIONS:
        return read_decision(body)[0], ""
    if endpoint != RESPONSES:
        return read_completion(LineKind(endpoint), body)[0], ""
    fields, options = read_response(body)
    if not options.store or options.previous_response_id is not None:
        name = "previous_response_id" if options.store else "store"
        raise unsupported(f"{name} in a line of a batch", name)
    details = response_details(
        background=False,
        store=True,
        instructions=options.has_instructions,
        previous_response_id=None,
    )
    return fields, details


def _without_connection(fields: dict[str, Any], key: ApiKey) -> dict[str, Any]:
    if "idempotency_key" in fields:
        raise invalid("the batch knows its lines by their places: leave it out", "idempotency_key")
    # Batches must not hold up the requests that somebody waits for.
    return allowed_fields(key, fields, default_class="low")
