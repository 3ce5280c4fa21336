"""JSON Schemas of the wire formats, for clients in other languages.

`python -m batchmill.producer.schemas FOLDER` writes them; `schema/` holds those of this version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from batchmill.producer.job.batch import BATCH_EVENTS, BatchStatus
from batchmill.producer.job.document_schema import job_schema
from batchmill.producer.protocol.record_schema import RecordFields

from .results import JobResult

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Definitions of `JobResult` that the event of a job refers to.
_EVENT_DEFINITIONS = (
    *("Answer", "CalledFunction", "CompletionTokensDetails", "DecisionResult", "JobError"),
    *("PromptTokensDetails", "ToolCall", "Usage"),
)
_STATES = ("completed", "failed", "cancelled", "expired")


def schemas() -> dict[str, dict[str, Any]]:
    """Return each schema by its file name."""
    return {
        "job.schema.json": _titled(job_schema(), "A job, as it is submitted"),
        "result.schema.json": _titled(
            JobResult.model_json_schema(mode="serialization"), "How a job ended, with its output"
        ),
        "record.schema.json": _titled(
            _without_null(RecordFields.model_json_schema()),
            "A job's record, as HGETALL batchmill:job:ID returns it",
        ),
        "webhook-event.schema.json": _event(),
        "batch.schema.json": _titled(
            BatchStatus.model_json_schema(mode="serialization"), "The status of a batch"
        ),
        "batch-event.schema.json": _batch_event(),
    }


def render(schema: dict[str, Any]) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _titled(schema: dict[str, Any], title: str) -> dict[str, Any]:
    return {"$schema": _DIALECT, **schema, "title": title}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Remove null from a hash's fields: one is present, as text, or missing."""
    for field in schema["properties"].values():
        field.pop("default", None)
        for choice in field.pop("anyOf", ()):
            if choice != {"type": "null"}:
                field |= choice
    return schema


def _event() -> dict[str, Any]:
    """Return the schema of a job's event; a test compares it with `worker/webhooks/payload.py`."""
    moment = {"type": ["string", "null"], "format": "date-time"}
    result = JobResult.model_json_schema(mode="serialization")
    data = {
        "id": {"type": "string"},
        "object": {"const": "generation"},
        "status": {"enum": list(_STATES)},
        "model": {"type": ["string", "null"]},
        "finish_reason": result["properties"]["finish_reason"],
        "usage": {"anyOf": [{"$ref": "#/$defs/Usage"}, {"type": "null"}]},
        "tenant": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "error": {"anyOf": [{"$ref": "#/$defs/JobError"}, {"type": "null"}]},
        "attempts": {"type": "array", "items": _attempt(moment)},
        "created_at": moment,
        "started_at": moment,
        "finished_at": moment,
    }
    event = {
        "type": {"enum": [f"generation.{state}" for state in _STATES]},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": {
            "type": "object",
            "properties": {**data, **_output(result["properties"])},
            "required": list(data),
        },
    }
    schema = {
        "type": "object",
        "properties": event,
        "required": list(event),
        "$defs": {name: result["$defs"][name] for name in _EVENT_DEFINITIONS},
    }
    return _titled(schema, "The webhook event of a job that has ended")


def _output(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event that only some outputs have, or only on request."""
    calls = {"anyOf": [properties["tool_calls"], {"type": "null"}]}
    return {
        "watermarked": {"const": True},
        "output": {"type": ["string", "null"]},
        "truncated": {"type": "boolean"},
        "tool_calls": calls,
        "decision": properties["decision"],
    }


def _attempt(moment: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an attempt in a job's event."""
    number, text = {"type": ["integer", "null"]}, {"type": ["string", "null"]}
    fields = {
        "attempt": number,
        "started_at": moment,
        "finished_at": moment,
        "output_tokens": number,
        "cause": text,
        "code": text,
    }
    return {"type": "object", "properties": fields, "required": list(fields)}


def _batch_event() -> dict[str, Any]:
    """Return the schema of a batch's event."""
    batch = BatchStatus.model_json_schema(mode="serialization")
    data = {
        "id": {"type": "string"},
        "object": {"const": "batch"},
        "status": {"enum": list(BATCH_EVENTS)},
        "request_counts": {"anyOf": [{"$ref": "#/$defs/RequestCounts"}, {"type": "null"}]},
        "errors": {"anyOf": [{"$ref": "#/$defs/BatchErrors"}, {"type": "null"}]},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "created_at": {"type": ["string", "null"], "format": "date-time"},
        "finished_at": {"type": "string", "format": "date-time"},
    }
    event = {
        "type": {"enum": [f"batch.{state}" for state in BATCH_EVENTS]},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": {"type": "object", "properties": data, "required": list(data)},
    }
    schema = {
        "type": "object",
        "properties": event,
        "required": list(event),
        "$defs": {
            name: batch["$defs"][name] for name in ("BatchError", "BatchErrors", "RequestCounts")
        },
    }
    return _titled(schema, "The webhook event of a batch that has ended")


def main() -> None:
    """Write the schemas into the folder that the command line names."""
    folder = Path(sys.argv[1])
    for name, schema in schemas().items():
        (folder / name).write_text(render(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
