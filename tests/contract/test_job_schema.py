"""The published schema of a job accepts what submit accepts, and refuses what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from batchmill.engine.contract.aliases import names_of
from batchmill.producer.errors import JobRejected
from batchmill.producer.job.document_schema import job_schema
from batchmill.producer.job.validation import parse_document

SCHEMA = job_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
#: Values of every type, valid somewhere and invalid elsewhere.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2.0, 0.5, -1.5, 1.5, 20, 21, 128, 129, 2**31, 2**32, 2**63),
    *(-(2**63), 1e-6, "", "a", "5", " ", "auto", "none", "required", "low", "left", "medium"),
    *("x" * 65, "x" * 129, "ä", "2030-01-01T00:00:00Z", "https://example.com/hook"),
    *([], [1], [1.0], [0, 2], [-1], [1.5], ["a"], [""], ["a", "b"], ["x" * 65], ["text"]),
    *([True], [None], [[]], [[1]], [[1.0]], [["a"]], [[-1]], ["completed"], ["started", "lost"]),
    *([{}], PARTS, [TOOL], [{**TOOL, "type": "web"}], [{"text": "a"}], [{"title": "a"}]),
    *([{"title": None, "text": "a"}], [{"role": "user", "content": "a"}]),
    *({}, {"a": 1}, {"a": "b"}, {"a": None}, {"a": [1]}, {"5": 1}, {"5": 1.5, "0": -100}),
    *({"5": 101}, {"05": 1}, {"a" * 65: "b"}, {"": "b"}, {"type": "text"}, {"regex": "[a-z]"}),
    {"type": "function", "function": {"name": "f"}},
)
#: Fields whose values submit checks further than a schema can.
CHECKED_FURTHER = {
    *("bad_words_ids", "chat_template_kwargs", "deadline", "idempotency_key", "model"),
    *("not_before", "response_format", "structured_outputs", "tags", "temperature", "webhook"),
    *("webhook_secret",),
}
#: What a field needs beside it, to have a meaning.
BESIDE: dict[str, dict[str, Any]] = {
    "explain_similarity": {"explain": ["uncertainty"]},
    "negative_prompt": {"guidance_scale": 2},
    **{
        name: {"webhook": "https://example.com/"}
        for name in ("include_output", "webhook_events_filter", "webhook_secret")
    },
    "top_logprobs": {"logprobs": True},
    "min_tokens": {"max_tokens": 2**31 - 1},
    "min_new_tokens": {"max_tokens": 2**31 - 1},
    **{name: {"echo": True} for name in names_of("max_tokens")},
    "tool_choice": {"tools": [TOOL]},
    "continue_final_message": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    },
}
MESSAGE = {"messages": [{"role": "user", "content": "a"}]}


def accepts(document: dict[str, Any]) -> bool:
    """Return whether submit accepts a document, as JSON."""
    try:
        parse_document(json.dumps(document))
    except JobRejected:
        return False
    return True


@pytest.mark.parametrize("name", sorted(SCHEMA["properties"]))
def test_every_value_of_every_field_is_judged_alike(name: str) -> None:
    num_accepted = 0
    for value in VALUES:
        base: dict[str, Any] = {} if name in ("prompt", "messages") else MESSAGE
        document = {**base, **BESIDE.get(name, {}), name: value}
        accepted, valid = accepts(document), VALIDATOR.is_valid(document)
        num_accepted += accepted
        assert valid or not accepted, f"submit accepts {document}, and the schema does not"
        if name not in CHECKED_FURTHER:
            assert accepted or not valid, f"the schema accepts {document}, and submit does not"
    assert num_accepted, "no value shows that the field is accepted"


URL = "https://a.example/b"
MESSAGES: list[tuple[dict[str, Any], bool]] = [
    ({"content": "a"}, True),
    ({"content": PARTS}, True),
    ({"content": []}, True),
    ({"content": [{"type": "text"}]}, False),
    ({"content": [{"type": "text", "text": "a", "x": 1}]}, False),
    ({"content": [{"type": "image_url", "image_url": {"url": "https://a.example/b"}}]}, True),
    ({"content": [{"type": "image", "media": "med_" + "0" * 64}, *PARTS]}, True),
    ({"content": [{"type": "image", "media": "med_1"}]}, False),
    ({"content": [{"type": "image_url", "image_url": {"url": URL, "detail": "low"}}]}, False),
    ({"content": [{"type": "video", "url": URL}]}, False),
    ({"content": ["a"]}, False),
    ({"content": {"type": "text", "text": "a"}}, False),
    ({"content": 5}, False),
    ({"content": "a", "name": "Anna"}, True),
    ({"content": "a", "name": None}, True),
    ({"content": "a", "name": ""}, False),
    ({"content": "a", "role": "wizard"}, False),
    ({"content": "a", "nick": "x"}, False),
    ({"content": "a", "tool_calls": [], "refusal": None, "annotations": []}, True),
    ({"content": "a", "reasoning_content": "", "audio": None, "function_call": None}, True),
    ({"content": "a", "reasoning_content": "Hm."}, False),
    ({"content": "a", "refusal": "No."}, False),
    ({"content": None, "role": "assistant", "tool_calls": [CALL]}, True),
    ({"role": "assistant", "tool_calls": [CALL]}, True),
    ({"content": "a", "role": "assistant", "tool_calls": [{**CALL, "id": ""}]}, False),
    ({"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}, False),
    (
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        True,
    ),
    (
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "function": {"name": "a b", "arguments": "{}"}}],
        },
        False,
    ),
]


@pytest.mark.parametrize(("fields", "fits"), MESSAGES)
def test_messages_are_judged_alike(fields: dict[str, Any], fits: bool) -> None:
    document = {"messages": [{"role": "user", **fields}]}
    assert accepts(document) is fits
    assert VALIDATOR.is_valid(document) is fits


@pytest.mark.parametrize(
    ("document", "fits"),
    [
        ({"prompt": "a"}, True),
        ({"prompt": "a", "messages": None}, True),
        ({**MESSAGE, "prompt": None}, True),
        ({**MESSAGE, "prompt": "a"}, False),
        ({"prompt": None}, False),
        ({}, False),
        ({"prompt": "a", "promt": "b"}, False),
    ],
)
def test_exactly_one_input_is_given(document: dict[str, Any], fits: bool) -> None:
    assert accepts(document) is fits
    assert VALIDATOR.is_valid(document) is fits
