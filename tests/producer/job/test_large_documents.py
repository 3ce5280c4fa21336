"""Documents that are far larger than any job are refused before their parts are checked."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.batch import parse_batch
from batchmill.producer.job.validation import parse_document, parse_job

MANY = 200_000
CHAT = {"role": "user", "content": "x"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOO_MANY_PARTS: dict[str, dict[str, Any]] = {
    "unknown fields": {f"field_{number}": 1 for number in range(MANY)},
    "metadata": {"metadata": {str(number): 1 for number in range(MANY)}},
    "tools": {"messages": [CHAT], "tools": [{}] * MANY},
    "a message's fields": {"messages": [CHAT | {f"field_{number}": 1 for number in range(MANY)}]},
    "calls of messages": {
        "messages": [{"role": "assistant", "tool_calls": [CALL] * 100}] * 1000,
    },
    "a schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {str(number): {} for number in range(MANY)}},
        }
    },
    "a list of lists": {"bad_words": [["x"]] * MANY},
}


def _with_input(fields: dict[str, Any]) -> dict[str, Any]:
    return fields if "messages" in fields else {"prompt": "x", **fields}


@pytest.mark.parametrize("name", TOO_MANY_PARTS)
def test_a_job_of_too_many_parts_is_refused_as_a_whole(name: str) -> None:
    with pytest.raises(JobRejected, match="more than 131072 keys, objects and lists, the limit"):
        parse_job(_with_input(TOO_MANY_PARTS[name]))


def test_so_is_a_batch_and_a_document_that_contains_itself() -> None:
    with pytest.raises(JobRejected, match="131072 keys"):
        parse_batch(TOO_MANY_PARTS["metadata"])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(JobRejected, match="131072 keys"):
        parse_job({"prompt": "x", "bad_words": endless})


@pytest.mark.parametrize("name", ["tags", "tools", "bad_words", "stop", "webhook_events_filter"])
def test_a_long_list_is_refused_by_its_length_and_not_by_each_entry(name: str) -> None:
    with pytest.raises(
        JobRejected, match=rf"^{name}: List should have at most \d+ items"
    ) as raised:
        parse_job({"prompt": "x", name: [1.5] * MANY})
    assert "more)" not in str(raised.value)


def test_a_long_url_is_refused_by_its_length() -> None:
    with pytest.raises(JobRejected, match="webhook: String should have at most 2048"):
        parse_job({"prompt": "x", "webhook": "x" * MANY})


def test_the_longest_list_of_token_ids_is_no_large_document() -> None:
    assert len(parse_document(b'{"prompt": [%s1]}' % (b"1," * 262_143)).prompt or ()) == 262_144
