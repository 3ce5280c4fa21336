"""Vectors in lines of results: numbers, or base64 if the job asks for it; tables have numbers."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from batchmill.producer import JobRejected, JobResult
from batchmill.producer.bulk.pooled_bodies import embedding_body
from batchmill.producer.bulk.result_columns import ResultColumns
from batchmill.producer.job.pooled_requests import read_embedding_body
from batchmill.producer.job.validation import parse_job

DATA = base64.b64encode(struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)).decode()
SECOND = base64.b64encode(struct.pack("<2f", 3.0, 4.0)).decode()


@pytest.mark.parametrize(
    ("asked", "second"), [("float", [3.0, 4.0]), ("base64", SECOND), (None, [3.0, 4.0])]
)
def test_a_line_has_the_encoding_that_its_job_asks_for(asked: str | None, second: Any) -> None:
    body = {"input": ["a", "b"]} | ({} if asked is None else {"encoding_format": asked})
    job = parse_job(read_embedding_body(body)[0])
    assert job.embedding is not None
    section = {"count": 2, "dimensions": 2, "data": DATA}
    if job.embedding.encoding_format is not None:
        section["encoding_format"] = job.embedding.encoding_format
    result = JobResult.model_validate(
        {"id": "gen_1", "model": "m", "status": "completed", "embedding": section}
    )
    found = embedding_body(result)
    assert found["data"][1]["embedding"] == second
    columns = ResultColumns("", 1, embeds=True)
    assert columns.cells({"response": {"body": found}})[0] == [1.0, 2.0]


def test_an_unknown_encoding_of_a_job_is_refused() -> None:
    with pytest.raises(JobRejected) as refused:
        parse_job({"embedding": {"input": "a", "encoding_format": "int8"}})
    assert refused.value.param == "embedding.encoding_format"
