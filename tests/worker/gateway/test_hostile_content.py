"""Content that takes long, or much memory, ends as an error of its own request."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from .conftest import DEADLINE_S, Site, make_key

#: The first takes all of the time that a check has, the second fills the stack; 60 bytes and 25 KB.
WIDE = {"type": "integer", "multipleOf": 9999991}
RULES = "\n".join(
    ["start: a0", *(f'a{i}: a{i + 1} a{i + 1} | "x"' for i in range(1000)), 'a1000: "y"']
)
MESSAGES = [{"role": "user", "content": "x"}]
ARGUMENTS = {"type": "object", "properties": {"n": WIDE}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": ARGUMENTS}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": WIDE}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
#: By name: the route and the request.
BOMBS: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat's format": (CHAT, {"messages": MESSAGES, "response_format": SCHEMA}),
    "a chat's tool": (CHAT, {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}),
    "a chat's grammar": (CHAT, {"messages": MESSAGES, "structured_outputs": {"grammar": RULES}}),
    "a text's grammar": (TEXT, {"prompt": "x", "structured_outputs": {"grammar": RULES}}),
    "a text of several prompts": (
        TEXT,
        {"prompt": ["x", "y"], "structured_outputs": {"json": WIDE}},
    ),
    "a response's format": (
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": WIDE}}},
    ),
    "a message's tool": (
        "/v1/messages",
        {
            "model": "demo",
            "messages": MESSAGES,
            "max_tokens": 5,
            "tools": [{"name": "f", "input_schema": ARGUMENTS}],
            "tool_choice": {"type": "any"},
        },
    ),
    "a request of a message batch": (
        "/v1/messages/batches",
        {
            "requests": [
                {
                    "custom_id": "a",
                    "params": {
                        "model": "demo",
                        "messages": MESSAGES,
                        "max_tokens": 5,
                        "tools": [{"name": "f", "input_schema": ARGUMENTS}],
                        "tool_choice": {"type": "any"},
                    },
                }
            ]
        },
    ),
}


def still_serves(http: httpx2.Client) -> None:
    response = http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 3})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("name", BOMBS)
def test_a_structure_bomb_is_refused_by_every_route(http: httpx2.Client, name: str) -> None:
    route, body = BOMBS[name]
    response = http.post(route, json=body)
    assert response.status_code == 400, response.text
    assert "limit: use a smaller structure" in response.json()["error"]["message"]
    still_serves(http)


MANY = 300_000
#: Bodies of megabytes that no job can have, and the status of each.
LARGE: dict[str, tuple[str, str, int]] = {
    "deep": (CHAT, '{"messages": ' + "[" * 200_000, 400),
    "deep and whole": (TEXT, '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}", 400),
    "deep in a schema": (
        TEXT,
        '{"prompt": "x", "structured_outputs": {"json": ' + '{"not":' * 400 + "{}" + "}" * 402,
        400,
    ),
    "a prompt": (TEXT, json.dumps({"prompt": "x" * 8_000_000}), 400),
    "a chat": (CHAT, json.dumps({"messages": [{"role": "user", "content": "x" * 8_000_000}]}), 400),
    "messages": (CHAT, json.dumps({"messages": MESSAGES * MANY}), 400),
    "tools": (CHAT, json.dumps({"messages": MESSAGES, "tools": [{}] * MANY}), 400),
    "items": (
        "/v1/responses",
        json.dumps({"input": [{"role": "user", "content": "x"}] * MANY}),
        400,
    ),
    "Anthropic's": (
        "/v1/messages",
        json.dumps({"model": "demo", "max_tokens": 1, "messages": MESSAGES * MANY}),
        400,
    ),
    "fields": (CHAT, json.dumps({f"field_{number}": 1 for number in range(MANY)}), 400),
    "more than the limit": (TEXT, json.dumps({"prompt": "x" * 34_000_000}), 413),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_or_deep_body_is_refused_by_every_route(http: httpx2.Client, name: str) -> None:
    route, body, status = LARGE[name]
    response = http.post(route, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert len(response.text) < 2000  # it does not quote the content
    assert response.json()["error"]["message"]
    still_serves(http)


def batch_line(number: int, **body: Any) -> str:
    fields = {"model": "demo", "messages": MESSAGES, "max_tokens": 3, **body}
    line = {"custom_id": f"line {number}", "method": "POST", "url": CHAT, "body": fields}
    return json.dumps(line)


def test_bombs_in_the_file_of_a_batch_end_only_that_batch(openai: OpenAI) -> None:
    def schema(number: int) -> dict[str, Any]:
        wide = {"type": "integer", "multipleOf": 99999989 + 2 * number}
        return {"type": "json_schema", "json_schema": {"name": "n", "schema": wide}}

    lines = [batch_line(0), *(batch_line(n, response_format=schema(n)) for n in range(1, 50))]
    file = ("bombs.jsonl", io.BytesIO("\n".join(lines).encode()))
    file_id = openai.files.create(file=file, purpose="batch").id
    batch = openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
    deadline = time.monotonic() + DEADLINE_S
    while batch.status == "validating":
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = openai.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    # Each takes seconds to find, so a few are enough.
    errors = batch.errors.data or []
    assert [(error.line, error.code) for error in errors] == [
        (line, "structure_too_complex") for line in (2, 3, 4)
    ]


def test_the_bombs_of_one_tenant_do_not_hold_up_the_requests_of_another(
    site: Site, http: httpx2.Client
) -> None:
    headers = {"authorization": f"Bearer {make_key(site.mill, tenant='hostile')}"}
    statuses: list[int] = []

    def attack(number: int) -> None:
        wide = {"json": {"type": "integer", "multipleOf": 88888891 + 2 * number}}
        body = {"prompt": "x", "structured_outputs": wide}
        root = site.url.removesuffix("/v1")
        response = httpx2.post(root + TEXT, json=body, headers=headers, timeout=600)
        statuses.append(response.status_code)

    attackers = [threading.Thread(target=attack, args=(number,)) for number in range(4)]
    for attacker in attackers:
        attacker.start()
    # These need a thread, and a check of their own.
    body: dict[str, Any] = {"prompt": "x", "max_tokens": 3, "user": "x" * 100_000}
    assert http.post(TEXT, json=body).status_code == 200
    body["structured_outputs"] = {"json": {"type": "integer", "maximum": len(statuses) + 1000}}
    assert http.post(TEXT, json=body).status_code == 200
    num_before = len(statuses)
    for attacker in attackers:
        attacker.join(600)
    assert statuses == [400] * 4
    assert num_before < 4
