"""The schemas in `schema/` are those of the code, and describe what really crosses the wire."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from batchmill.producer import GenerationJob, JobError, JobResult, JobState
from batchmill.producer.answers import JobRecord, OutboxEntry
from batchmill.producer.records import read_job
from batchmill.producer.schemas import render, schemas
from batchmill.worker.webhook_payload import render_body

from .public_face import ROOT

FOLDER = ROOT / "schema"


def is_valid(name: str, data: Any) -> bool:
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(data))


def test_files_are_those_of_the_code() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(schemas())
    stale = [
        name for name, schema in schemas().items() if (FOLDER / name).read_text() != render(schema)
    ]
    assert not stale, "run: python -m batchmill.producer.schemas schema"


@pytest.mark.parametrize(
    ("job", "fits"),
    [
        ({"prompt": "hi"}, True),
        ({"prompt": [1, 2], "stop": ["END"], "top_k": 4, "seed": None}, True),
        ({"messages": [{"role": "user", "content": "hi"}], "metadata": {"a": "b"}}, True),
        ({"prompt": "hi", "max_tokens": -1}, False),
        ({"prompt": "hi", "temperature": "hot"}, False),
        ({"prompt": "hi", "no_such_field": 1}, False),
        ({"messages": [{"role": "nobody", "content": "hi"}]}, False),
    ],
)
def test_job_schema_and_the_check_at_submit_agree(job: dict[str, Any], fits: bool) -> None:
    assert is_valid("job.schema.json", job) is fits
    if fits:
        GenerationJob.model_validate(job)


def test_results_and_events_fit_their_schemas() -> None:
    error = JobError(code="engine_error", message="x")
    result = JobResult(id="gen_1", model="demo", status=JobState.FAILED, error=error)
    assert is_valid("result.schema.json", json.loads(result.model_dump_json()))
    entry = OutboxEntry(
        "evt_gen_1_failed", "generation.failed", "gen_1", "https://e", 1, 1, 5, None
    )
    for record in (None, _record(result)):
        event = json.loads(render_body(entry, record))
        assert is_valid("webhook-event.schema.json", event)
        event["data"]["status"] = "lost"
        assert not is_valid("webhook-event.schema.json", event)


def _record(result: JobResult) -> JobRecord:
    assert result.error is not None
    record = read_job(
        {
            b"id": b"gen_1",
            b"state": b"failed",
            b"doc": b'{"prompt": "hi", "metadata": {"order": "1"}}',
            b"model": b"demo",
            b"enqueued_at_ms": b"1",
            b"result": result.model_dump_json().encode(),
            b"error": result.error.model_dump_json().encode(),
        }
    )
    assert record is not None
    return record
