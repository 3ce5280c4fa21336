"""The cells of a result: JSON outputs are flattened by their schema, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.bulk.prompts import read_prompt
from batchmill.producer.bulk.result_columns import ResultColumns, schema_properties
from batchmill.producer.errors import BulkFileError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "stars": {"type": "integer"},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}},
        "tags": {"type": "array"},
    },
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA}}


def line(text: str) -> dict[str, Any]:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    return {"response": {"body": {"choices": [choice], "usage": usage}}, "error": None}


def cells(text: str) -> dict[str, Any]:
    columns = ResultColumns("", 1, schema_properties(FORMAT))
    names = [column.name for column in columns.columns(["name"])]
    return dict(zip(names, columns.cells(line(text)), strict=True))


def test_each_property_of_a_schema_is_a_column() -> None:
    data = {"name": "Mill", "stars": 5, "address": {"city": "Ulm"}, "tags": ["a"]}
    assert cells(json.dumps(data)) == {
        "text": json.dumps(data),
        "output.name": "Mill",
        "stars": 5,
        "address.city": "Ulm",
        "tags": ["a"],
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "output_tokens": 4,
        "error": None,
    }


@pytest.mark.parametrize(
    ("index", "stars"), [(2, 3), (0, 1), (None, None)], ids=["third", "first", "none"]
)
def test_values_are_those_of_the_selected_sample(index: int | None, stars: int | None) -> None:
    columns = ResultColumns("", 3, schema_properties(FORMAT), selects=True)
    names = [column.name for column in columns.columns([])]
    result = line("{}")
    body = result["response"]["body"]
    body["choices"] = [
        {"message": {"content": json.dumps({"stars": n})}, "finish_reason": reason}
        for n, reason in ((1, "stop"), (2, "stop"), (3, "length"))
    ]
    body["selection"] = {"by": "vote", "index": index}
    found = dict(zip(names, columns.cells(result), strict=True))
    assert (found["text"], found["text_3"]) == ('{"stars": 1}', '{"stars": 3}')
    assert found["stars"] == stars
    assert found["selected"] == (None if stars is None else json.dumps({"stars": stars}))
    assert found["finish_reason"] == {3: "length", 1: "stop", None: None}[stars]


@pytest.mark.parametrize(
    "text", ['{"name": "Mi', "[1]", '{"stars": "many", "address": 1}', '{"stars": NaN}']
)
def test_an_output_that_does_not_follow_the_schema_leaves_cells_empty(text: str) -> None:
    found = cells(text)
    assert found["text"] == text
    assert (found["stars"], found["address.city"]) == (None, None)


def test_a_failed_line_has_its_error_and_the_text_that_it_had() -> None:
    body = line("so far")["response"]["body"]
    error = {"code": "cancelled", "message": "the job was cancelled"}
    failed = {"response": None, "error": error, "partial": body}
    assert ResultColumns("", 2).cells(failed) == [
        *("so far", None, "stop", 3, 4),
        "cancelled: the job was cancelled",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ name }}", "the template uses no column"),
        ("{% if x %}", "the template is invalid: line 1"),
        ("[user]\n{", "the template is invalid"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    pytest.importorskip("jinja2")
    with pytest.raises(BulkFileError, match=message):
        read_prompt(text)


def test_a_jinja_template_cannot_leave_its_sandbox() -> None:
    pytest.importorskip("jinja2")
    prompt = read_prompt("{% if 1 %}{{ name.__class__.__mro__ }}{% endif %}")
    with pytest.raises(ValueError, match="cannot be filled"):
        prompt.fields({"name": "x"})
    missing = read_prompt("{% if nothing %}x{% endif %}")
    with pytest.raises(ValueError, match="'nothing' is undefined"):
        missing.fields({"name": "x"})
