"""Several choices, log probabilities, tools and structures, whole and as streams; heartbeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from .conftest import HEARTBEAT_S, Site

Reference = Callable[..., tuple[list[int], str]]
HELLO: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("find", "send")
]


def ask(openai: OpenAI, **fields: Any) -> Any:
    given = {"model": "demo", "messages": HELLO, "max_tokens": 3, "seed": 7, **fields}
    return openai.chat.completions.create(**given)


def joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """Return the choices of a stream by their index, put together from its chunks."""
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        known = choices.setdefault(choice.index, {"text": "", "calls": [], "roles": 0})
        known["text"] += choice.delta.content or ""
        known["calls"] += choice.delta.tool_calls or []
        known["roles"] += choice.delta.role == "assistant"
        if choice.finish_reason is not None:
            known |= {"finish_reason": choice.finish_reason, "logprobs": choice.logprobs}
    return choices


def test_n_choices_come_whole_and_at_the_end_of_a_stream(
    openai: OpenAI, reference: Reference
) -> None:
    texts = [reference("<user>hello", 3, seed)[1] for seed in (7, 8, 9)]
    whole = ask(openai, n=3)
    assert [choice.message.content for choice in whole.choices] == texts
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage.completion_tokens == 9
    streamed = joined(list(ask(openai, n=3, stream=True)))
    assert [streamed[index]["text"] for index in range(3)] == texts
    assert [streamed[index]["roles"] for index in range(3)] == [1, 1, 1]
    assert {choice["finish_reason"] for choice in streamed.values()} == {"length"}


def test_log_probabilities_have_their_tokens(openai: OpenAI, reference: Reference) -> None:
    tokens = [f" w{token}" for token in reference("<user>hello", 3)[0]]
    options = {"logprobs": True, "top_logprobs": 2}
    (whole,) = ask(openai, **options).choices
    (streamed,) = joined(list(ask(openai, stream=True, **options))).values()
    for logprobs in (whole.logprobs, streamed["logprobs"]):
        assert [each.token for each in logprobs.content] == tokens
        assert [len(each.top_logprobs) for each in logprobs.content] == [2, 2, 2]
        assert all(each.logprob == each.top_logprobs[0].logprob for each in logprobs.content)
    assert ask(openai).choices[0].logprobs is None


def test_the_older_form_of_log_probabilities(openai: OpenAI, reference: Reference) -> None:
    tokens = [f" w{token}" for token in reference("hello", 3)[0]]
    fields: Any = {"model": "demo", "prompt": "hello", "max_tokens": 3, "seed": 7, "logprobs": 1}
    whole = openai.completions.create(**fields).choices[0].logprobs
    assert whole is not None
    assert whole.tokens == tokens
    assert whole.text_offset == [0, len(tokens[0]), len(tokens[0] + tokens[1])]
    chunks = list(openai.completions.create(**fields, stream=True))
    assert chunks[-1].choices[0].logprobs == whole


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("required", ["find", "send"]),
        ({"type": "function", "function": {"name": "send"}}, ["send"]),
        ("none", []),
    ],
)
def test_calls_of_tools(openai: OpenAI, choice: Any, called: list[str]) -> None:
    (whole,) = ask(openai, tools=TOOLS, tool_choice=choice).choices
    (streamed,) = joined(list(ask(openai, tools=TOOLS, tool_choice=choice, stream=True))).values()
    reason = "tool_calls" if called else "length"
    assert (whole.finish_reason, streamed["finish_reason"]) == (reason, reason)
    assert [call.function.name for call in whole.message.tool_calls or []] == called
    assert [call.function.name for call in streamed["calls"]] == called
    assert [call.index for call in streamed["calls"]] == list(range(len(called)))
    assert [call.function.arguments for call in streamed["calls"]] == ["{}"] * len(called)


def test_a_response_format_reaches_the_job_and_a_wrong_one_is_named(
    openai: OpenAI, site: Site
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    completion = ask(openai, response_format=wanted)
    document = json.loads(site.mill.record(completion.id).document)
    assert document["response_format"]["json_schema"]["schema"] == SCHEMA
    for wrong, named in (
        ({"type": "yaml"}, "response_format"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "?"}}},
            "enforced",
        ),
    ):
        with pytest.raises(sdk.BadRequestError, match=named) as caught:
            ask(openai, response_format=wrong)
        assert str(caught.value.param).startswith("response_format")


def test_usage_comes_in_a_stream_only_if_it_is_asked_for(openai: OpenAI) -> None:
    plain = list(ask(openai, stream=True))
    assert all("usage" not in chunk.model_fields_set for chunk in plain)
    asked = list(ask(openai, stream=True, n=2, stream_options={"include_usage": True}))
    *others, last = asked
    assert all(chunk.choices and chunk.usage is None for chunk in others)
    assert (last.choices, last.usage.completion_tokens) == ([], 6)
    assert last.usage.total_tokens == last.usage.prompt_tokens + 6


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_silent_stream_gets_heartbeats(
    http: httpx2.Client, path: str, reference: Reference
) -> None:
    body = {"model": "demo", "max_tokens": 2, "seed": 7, "stream": True, "delay_s": 4 * HEARTBEAT_S}
    if path == "/v1/responses":
        body |= {"input": "hello", "max_output_tokens": body.pop("max_tokens")}
    else:
        body["messages"] = HELLO
    with http.stream("POST", path, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = list(response.iter_lines())
    beats = [place for place, line in enumerate(lines) if line == ": heartbeat"]
    words = reference("<user>hello", 2)[1].split()
    shown = [place for place, line in enumerate(lines) if words[0] in line]
    assert sum(beat < shown[0] for beat in beats) >= 2
    assert words[1] in "".join(lines)
