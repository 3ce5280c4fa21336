"""Lines of a bulk file that readers would understand differently are refused alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchmill.producer.bulk.lines import LineSettings, read_line
from batchmill.producer.errors import JobRejected
from batchmill.producer.files.source import RecordFile
from batchmill.producer.job.line import BulkLine

GOOD = '{"custom_id": "good", "prompt": "x"}'


def lines_of(tmp_path: Path, text: str) -> list[BulkLine]:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    return [read_line(record, LineSettings()) for record in RecordFile(path).records()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"custom_id": "b-\\ud83d", "prompt": "x"}', "custom_id: has a lone surrogate"),
        (
            '{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": '
            '{"name": "\\ud83d", "schema": {"type": "object"}}}}',
            "response_format: has a lone surrogate",
        ),
        ('{"prompt": "one", "prompt": "two"}', "prompt is given twice"),
        ('{"prompt": "x", "metadata": {"a": "1", "a": "2"}}', "a key is given twice"),
        ('{"prompt": "x", "temperature": NaN}', "NaN, which is not JSON"),
    ],
    ids=["custom_id", "response_format", "twice", "twice inside", "NaN"],
)
def test_a_line_that_cannot_be_stored_or_is_ambiguous_is_refused_alone(
    tmp_path: Path, line: str, message: str
) -> None:
    before, refused, after = lines_of(tmp_path, f"{GOOD}\n{line}\n{GOOD}\n")
    assert isinstance(refused.problem, JobRejected)
    assert message in str(refused.problem)
    refused.custom_id.encode()
    for good in (before, after):
        assert good.job is not None
        good.job.model_dump_json()
