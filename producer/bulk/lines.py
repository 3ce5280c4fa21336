"""Parsing a record of a bulk file into a `BulkLine` with its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.line import BulkLine, LineKind, check_custom_id
from batchmill.producer.job.validation import parse_job

from .records import Record
from .template import PromptTemplate


@dataclass(frozen=True, slots=True)
class LineSettings:
    """Settings of the command for all lines."""

    #: The model of every line, even if a line names another; None leaves it to the line.
    model: str | None = None
    #: Fields of a job that a line may override.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Makes the prompt from the record's columns; None if records are requests.
    template: PromptTemplate | None = None
    #: The filled template becomes a user message, after the system message, not a bare prompt.
    as_chat: bool = False
    system: str | None = None
    #: Labels added to those of every line's job.
    tags: tuple[str, ...] = ()


def read_line(record: Record, settings: LineSettings) -> BulkLine:
    """Return the line of a record; an invalid record gives a line with its problem."""
    kind, custom_id = LineKind.TEXT, f"line-{record.line}"
    try:
        if record.data is None:
            raise JobRejected(record.problem, code="invalid_line")
        custom_id = _custom_id(record.data, custom_id)
        kind, fields = _fields(record.data, settings)
        fields = _with_defaults(fields, settings)
        return BulkLine(record.number, custom_id, kind, parse_job(fields))
    except JobRejected as error:
        return BulkLine(record.number, custom_id, kind, None, error)


def _custom_id(data: Mapping[str, Any], otherwise: str) -> str:
    custom_id = data.get("custom_id")
    if custom_id is None or custom_id == "":
        return otherwise
    return check_custom_id(custom_id)


def _fields(data: Mapping[str, Any], settings: LineSettings) -> tuple[LineKind, dict[str, Any]]:
    """Return the format of the result and the fields of the job."""
    if settings.template is not None:
        return _from_template(data, settings.template, settings)
    if "body" in data or "url" in data:
        return _from_openai(data)
    fields = {name: value for name, value in data.items() if name != "custom_id"}
    return (LineKind.CHAT if "messages" in fields else LineKind.TEXT), fields


def _from_openai(data: Mapping[str, Any]) -> tuple[LineKind, dict[str, Any]]:
    unknown = data.keys() - {"custom_id", "method", "url", "body"}
    if unknown:
        raise JobRejected(f"{min(unknown)} is not part of a batch line", param=min(unknown))
    if data.get("method", "POST") != "POST":
        raise JobRejected("method: must be POST", param="method")
    try:
        kind = LineKind(str(data.get("url")))
    except ValueError:
        raise JobRejected(
            f"url: must be {' or '.join(LineKind)}; this version supports no other", param="url"
        ) from None
    body = data.get("body")
    wanted, other = ("messages", "prompt") if kind is LineKind.CHAT else ("prompt", "messages")
    if not isinstance(body, dict) or wanted not in body or other in body:
        raise JobRejected(f"body: must be an object with {wanted} for {kind}", param="body")
    return kind, dict(body)


def _from_template(
    data: Mapping[str, Any], template: PromptTemplate, settings: LineSettings
) -> tuple[LineKind, dict[str, Any]]:
    try:
        prompt = template.fill(data)
    except ValueError as error:
        raise JobRejected(str(error), code="invalid_line") from None
    if not settings.as_chat:
        return LineKind.TEXT, {"prompt": prompt}
    messages = [{"role": "user", "content": prompt}]
    if settings.system is not None:
        messages.insert(0, {"role": "system", "content": settings.system})
    return LineKind.CHAT, {"messages": messages}


def _with_defaults(fields: dict[str, Any], settings: LineSettings) -> dict[str, Any]:
    if "idempotency_key" in fields:
        raise JobRejected(
            "idempotency_key: bulk sets it, so that a run can be resumed; leave it out",
            param="idempotency_key",
        )
    fields = {**settings.defaults, **fields}
    # A default max_tokens must give way to a line's max_completion_tokens.
    aliases = ("max_completion_tokens", "max_output_tokens", "max_new_tokens")
    if any(name in fields for name in aliases) and "max_tokens" in settings.defaults:
        del fields["max_tokens"]
    own = fields.get("tags", [])
    if settings.tags and isinstance(own, list):  # else the job's own check rejects it
        fields["tags"] = [*(tag for tag in settings.tags if tag not in own), *own]
    if settings.model is not None:
        fields["model"] = settings.model
    return fields
