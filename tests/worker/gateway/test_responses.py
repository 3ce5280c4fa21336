"""The stock OpenAI client gets responses: at once, in the background, and as numbered events."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI

from ...conftest import RedisServer
from ..conftest import Mill
from .conftest import DEADLINE_S, Site, Start, client_of, make_key, start_worker

Reference = Callable[..., tuple[list[int], str]]


def ask(client: OpenAI, **fields: Any) -> Any:
    given = {"model": "demo", "input": "hello", "max_output_tokens": 4, **fields}
    given["extra_body"] = {"seed": 7, **given.get("extra_body", {})}
    return client.responses.create(**given)


def wait_ended(client: OpenAI, name: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while (response := client.responses.retrieve(name)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, response
        time.sleep(0.05)
    return response


def test_a_response_is_waited_for_and_kept(openai: OpenAI, reference: Reference) -> None:
    response = ask(openai, instructions="Be brief.", metadata={"team": "a"}, temperature=0.5)
    text = reference("<system>Be brief.<user>hello", 4)[1]
    assert (response.output_text, response.status) == (text, "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 4
    assert response.usage.input_tokens + 4 == response.usage.total_tokens
    assert (response.instructions, response.temperature) == ("Be brief.", 0.5)
    assert response.metadata == {"team": "a"}
    assert openai.responses.retrieve(response.id) == response


def test_a_background_response_is_fetched_later(openai: OpenAI, reference: Reference) -> None:
    response = ask(openai, background=True, background_options={"completion_window": "2h"})
    assert response.status in ("queued", "in_progress")
    assert response.background
    assert (response.temperature, response.top_p) == (None, None)  # the model's own
    ended = wait_ended(openai, response.id)
    assert ended.output_text == reference("<user>hello", 4)[1]
    assert ended.id == response.id


def test_a_window_becomes_a_class_and_a_deadline(openai: OpenAI, site: Site) -> None:
    response = ask(openai, background=True, background_options={"completion_window": "8h"})
    record = site.mill.record(response.id.replace("resp_", "gen_"))
    assert record.queue == "batchmill.demo.low"
    assert record.deadline_at_ms is not None
    assert record.deadline_at_ms - record.enqueued_at_ms == 8 * 3600 * 1000


@pytest.mark.parametrize(
    ("tier", "priority"), [("flex", "low"), ("default", "normal"), ("priority", "high")]
)
def test_a_tier_is_a_class(openai: OpenAI, site: Site, tier: Any, priority: str) -> None:
    response = ask(openai, service_tier=tier)
    record = site.mill.record(response.id.replace("resp_", "gen_"))
    assert record.queue == f"batchmill.demo.{priority}"


def test_an_idempotency_key_makes_one_response(openai: OpenAI) -> None:
    headers = {"Idempotency-Key": "the same response"}
    first, second = (ask(openai, extra_headers=headers) for _ in range(2))
    assert first == second


def test_the_events_are_numbered_without_a_gap_and_end_with_the_response(
    openai: OpenAI, reference: Reference
) -> None:
    events = list(ask(openai, stream=True, max_output_tokens=30))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.incomplete",
    ]
    text = reference("<user>hello", 30)[1]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert ("".join(deltas), len(deltas)) == (text, 30)
    assert events[-1].response.output_text == text


def test_a_stream_is_resumed_after_any_event_with_the_same_rest(openai: OpenAI) -> None:
    stream = ask(openai, background=True, stream=True, max_output_tokens=400)
    begun = [next(stream) for _ in range(10)]
    stream.close()
    name = begun[0].response.id
    whole = list(openai.responses.retrieve(name, stream=True))
    assert [event.to_dict() for event in whole[:10]] == [event.to_dict() for event in begun]
    for after in (0, 9, 200, len(whole) - 2, len(whole) - 1, 10_000):
        rest = openai.responses.retrieve(name, stream=True, starting_after=after)
        expected = [event.to_dict() for event in whole[after + 1 :]]
        assert [event.to_dict() for event in rest] == expected


def test_the_worker_and_the_gateway_die_in_the_middle_and_the_text_is_the_same(
    redis_server: RedisServer, tmp_path: Path, start_gateway: Start, reference: Reference
) -> None:
    mill = Mill(redis_server.url, tmp_path)
    worker = start_worker(mill, stub={"step_time_s": 0.02})
    gateway = start_gateway(redis_server.url)
    stream = ask(
        client_of(gateway.url, "none"), background=True, stream=True, max_output_tokens=200
    )
    begun = [next(stream) for _ in range(30)]
    gateway.kill()
    worker.end(signal.SIGKILL)
    with pytest.raises(Exception):  # noqa: B017, PT011 - the transport's own error
        list(stream)
    start_worker(mill, "w2")
    client = client_of(start_gateway(redis_server.url).url, "none")
    name, last = begun[0].response.id, begun[-1].sequence_number
    rest = list(client.responses.retrieve(name, stream=True, starting_after=last))
    numbers = [event.sequence_number for event in (*begun, *rest)]
    assert numbers == list(range(len(numbers)))
    text = reference("<user>hello", 200)[1]
    deltas = [event for event in (*begun, *rest) if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == text
    ended = client.responses.retrieve(name)
    assert (ended.output_text, ended.usage.output_tokens) == (text, 200)
    assert mill.record(name.replace("resp_", "gen_")).attempts == 2
    mill.close()


def test_a_response_follows_an_earlier_one(openai: OpenAI, reference: Reference) -> None:
    first = ask(openai, instructions="Be brief.")
    second = ask(openai, input="more", previous_response_id=first.id, instructions="Be kind.")
    prompt = f"<system>Be kind.<user>hello<assistant>{first.output_text}<user>more"
    assert second.output_text == reference(prompt, 4)[1]
    assert second.previous_response_id == first.id
    third = ask(openai, input="again", previous_response_id=second.id)
    prompt = prompt.removeprefix("<system>Be kind.")
    prompt += f"<assistant>{second.output_text}<user>again"
    assert third.output_text == reference(prompt, 4)[1]
    with pytest.raises(sdk.NotFoundError):
        ask(openai, previous_response_id="resp_none")


def test_items_become_messages(openai: OpenAI, site: Site) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is the time?"}]},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
    ]
    tools: Any = [{"type": "function", "name": "clock", "parameters": {"type": "object"}}]
    response = ask(openai, input=items, tools=tools)
    assert response.tools[0].name == "clock"
    document = json.loads(site.mill.record(response.id.replace("resp_", "gen_")).document)
    assert [message["role"] for message in document["messages"]] == ["user", "assistant", "tool"]
    assert document["messages"][1]["tool_calls"][0]["function"]["name"] == "clock"


def test_a_response_is_cancelled_and_deleted(openai: OpenAI) -> None:
    response = ask(openai, background=True, max_output_tokens=1500)
    openai.responses.cancel(response.id)
    assert wait_ended(openai, response.id).status == "cancelled"
    last = list(openai.responses.retrieve(response.id, stream=True))[-1]
    assert last.type == "response.cancelled"
    openai.responses.delete(response.id)
    with pytest.raises(sdk.NotFoundError):
        openai.responses.retrieve(response.id)


def test_a_failed_response_says_why(openai: OpenAI) -> None:
    response = wait_ended(openai, ask(openai, input="<<error@1>>", background=True).id)
    assert (response.status, response.error.code) == ("failed", "numerical_error")
    last = list(openai.responses.retrieve(response.id, stream=True))[-1]
    assert last.type == "response.failed"
    with pytest.raises(sdk.InternalServerError):
        ask(openai, input="<<error@1>>")


def test_a_response_that_is_not_to_be_stored_is_erased(openai: OpenAI, site: Site) -> None:
    response = ask(openai, store=False)
    assert response.output_text
    job = "batchmill:job:" + response.id.replace("resp_", "gen_")
    site.mill.wait_for(lambda: not site.mill.store.client.exists(job), "the end of the record")
    with pytest.raises(sdk.BadRequestError, match="must be stored"):
        ask(openai, store=False, background=True)


def test_a_response_of_another_tenant_does_not_exist(openai: OpenAI, site: Site) -> None:
    response = ask(openai)
    other = client_of(site.url, make_key(site.mill, tenant="another"))
    calls: list[Callable[[], Any]] = [
        lambda: other.responses.retrieve(response.id),
        lambda: other.responses.cancel(response.id),
        lambda: other.responses.delete(response.id),
        lambda: ask(other, previous_response_id=response.id),
    ]
    for call in calls:
        with pytest.raises(sdk.NotFoundError):
            call()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "b": 1}]}]},
            "input.0.content.0.b",
        ),
        ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input.0.name"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"background_options": {"completion_window": "2h"}}, "background_options"),
        (
            {"background": True, "background_options": {"completion_window": "1h"}},
            "background_options.completion_window",
        ),
        ({"extra_body": {"bogus": 1}}, "bogus"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"num_return_sequences": 2}}, "num_return_sequences"),
        ({"extra_body": {"select": {"by": "vote"}}}, "select"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_wrong_fields_are_named(openai: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        ask(openai, **fields)
    assert caught.value.param == param
