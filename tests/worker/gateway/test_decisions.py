"""Decisions over HTTP: the paths and spellings of vLLM, transformers and SGLang, and in batches."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from openai import OpenAI

from batchmill.worker.engine_host.stub_output import stub_decision

from .conftest import DEADLINE_S, Site

STATE = "I was charged twice."
OURS: dict[str, Any] = {
    "refund": {"type": "yes_no", "instructions": "A refund?", "criteria": None},
    "topic": {"type": "choice", "criteria": {"billing": None, "praise": "a compliment"}},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/systemone": {
        "state": STATE,
        "questions": OURS | {"refund": {"type": "noul", "instructions": "A refund?"}},
    },
    "/v1/decisions": {
        "input": STATE,
        "questions": [
            {"id": "refund", "type": "yes_no", "question": "A refund?"},
            {
                "id": "topic",
                "type": "choice",
                "options": {"billing": None, "praise": "a compliment"},
            },
        ],
    },
}
EXPECTED = stub_decision({"state": STATE, "questions": OURS})["answers"]


@pytest.mark.parametrize("path", BODIES)
def test_a_decision_is_answered_in_one_form(openai: OpenAI, site: Site, path: str) -> None:
    body = BODIES[path] | {"model": "demo", "metadata": {"team": "a"}}
    found: Any = openai.post(path.removeprefix("/v1"), cast_to=object, body=body)
    assert found["object"] == "decision"
    assert found["model"] == "demo"
    for name, answer in found["answers"].items():
        assert answer["probabilities"] == pytest.approx(EXPECTED[name]["probabilities"])
        assert answer["answer"] == EXPECTED[name]["answer"]
    document = json.loads(site.mill.record(found["id"]).document)
    assert document["metadata"] == {"team": "a"}
    assert document["decision"]["questions"].keys() == OURS.keys()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"seed": 1}, "seed"),
        ({"stream": True}, "stream"),
        ({"assets": {"img": "x"}}, "assets"),
        ({"temperature": 0.5}, "temperature"),
        ({"questions": {}}, "questions"),
        ({"rotations": 100}, "rotations"),
        ({"state": [{"type": "image", "url": "http://a.example/"}]}, " - state: the URL of a part"),
        ({"state": [{"type": "input_image", "image_url": "x"}, "Look."]}, " - state[0] is a part"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    openai: OpenAI, change: dict[str, Any], param: str
) -> None:
    from openai import BadRequestError

    body = BODIES["/v1/systemone"] | change
    with pytest.raises(BadRequestError) as refused:
        openai.post("/systemone", cast_to=object, body=body)
    assert param in str(refused.value)


def test_a_batch_of_decisions_has_their_answers(openai: OpenAI) -> None:
    lines = [
        {
            "custom_id": f"row {n}",
            "method": "POST",
            "url": "/v1/decisions",
            "body": {"model": "demo", "state": f"Text {n}", "questions": OURS},
        }
        for n in range(3)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = openai.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    batch = openai.batches.create(
        input_file_id=file.id,
        endpoint="/v1/decisions",
        completion_window="24h",
    )
    deadline = time.monotonic() + DEADLINE_S
    while batch.status not in ("completed", "failed") and time.monotonic() < deadline:
        batch = openai.batches.retrieve(batch.id)
        time.sleep(0.05)
    assert batch.status == "completed", batch.errors
    assert batch.output_file_id is not None
    results = openai.files.content(batch.output_file_id).text.splitlines()
    found = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, results)}
    for n in range(3):
        expected = stub_decision({"state": f"Text {n}", "questions": OURS})["answers"]
        answers = found[f"row {n}"]["answers"]
        assert {name: each["answer"] for name, each in answers.items()} == {
            name: each["answer"] for name, each in expected.items()
        }
