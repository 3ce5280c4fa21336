"""The stock Anthropic client gets messages, whole and as streams, and batches of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic as sdk
import pytest
from anthropic import Anthropic

from .conftest import DEADLINE_S, Site, make_key

Reference = Callable[..., tuple[list[int], str]]
HELLO: Any = [{"role": "user", "content": "hello"}]


def client_of(site: Site, secret: str) -> Anthropic:
    root = site.url.removesuffix("/v1")
    return Anthropic(base_url=root, api_key=secret, max_retries=0, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[Anthropic]:
    with client_of(site, site.secret) as client:
        yield client


def ask(client: Anthropic, **fields: Any) -> Any:
    given = {"model": "demo", "messages": HELLO, "max_tokens": 4, **fields}
    given["extra_body"] = {"seed": 7, **given.get("extra_body", {})}
    return client.messages.create(**given)


def params(content: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "messages": messages, "max_tokens": 4, "seed": 7, **fields}


def wait_ended(client: Anthropic, batch_id: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while (batch := client.messages.batches.retrieve(batch_id)).processing_status != "ended":
        assert sum(batch.request_counts.to_dict().values()) == 3
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def test_a_message_is_a_chat(client: Anthropic, site: Site, reference: Reference) -> None:
    raw = client.messages.with_raw_response.create(
        model="demo",
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        max_tokens=4,
        metadata={"user_id": "u1"},
        extra_body={"seed": 7},
    )
    message = raw.parse()
    assert message.content[0].text == reference("<system>Be brief.<user>hello", 4)[1]
    assert (message.stop_reason, message.role, message.type) == (
        *("max_tokens", "assistant", "message"),
    )
    assert message.usage.output_tokens == 4
    assert message.id == str(raw.headers["request-id"]).replace("gen_", "msg_")


def test_an_idempotency_key_makes_one_message(client: Anthropic) -> None:
    headers = {"Idempotency-Key": "the same message"}
    first, second = (ask(client, extra_headers=headers) for _ in range(2))
    assert first == second


def test_a_stream_gives_the_same_message(client: Anthropic, reference: Reference) -> None:
    with client.messages.stream(
        model="demo", messages=HELLO, max_tokens=1000, extra_body={"seed": 7}
    ) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(texts) == reference("<user>hello", 1000)[1]
    assert len(texts) > 1
    assert message.content[0].text == "".join(texts)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 1000)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": True}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking"),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        (
            {"output_config": {"effort": "low"}, "extra_body": {"reasoning_effort": "high"}},
            "output_config.effort",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "b": 1}]}]},
            "messages.0.content.0.b",
        ),
        ({"extra_body": {"temperature": -1}}, "temperature"),
        ({"extra_body": {"bogus": 1}}, "bogus"),
        ({"model": "nope"}, "nope"),
    ],
)
def test_wrong_fields_are_named_in_anthropics_envelope(
    client: Anthropic, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(sdk.APIStatusError) as caught:
        ask(client, **fields)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert named in body["error"]["message"]


def test_a_wrong_key_is_an_authentication_error(site: Site) -> None:
    with client_of(site, "wrong") as wrong, pytest.raises(sdk.AuthenticationError) as caught:
        ask(wrong)
    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"


def test_models_have_anthropics_form(client: Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("demo", "model", "demo")


def test_tool_results_become_messages_of_tools(client: Anthropic, site: Site) -> None:
    messages: Any = [
        *HELLO,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "clock", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "noon"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    tools: Any = [{"name": "clock", "input_schema": {"type": "object"}}]
    message = ask(client, messages=messages, tools=tools, tool_choice={"type": "auto"})
    document = site.mill.record(message.id.replace("msg_", "gen_")).document.decode()
    assert '"role":"tool"' in document
    assert '"content":"So?"' in document


def test_a_batch_of_messages_ends_with_a_result_for_each(
    client: Anthropic, reference: Reference
) -> None:
    batch = client.messages.batches.create(
        requests=[
            {"custom_id": "a", "params": params("one")},
            {"custom_id": "b", "params": params("<<error@1>>")},
            {"custom_id": "c", "params": params("three")},
        ]
    )
    assert sum(batch.request_counts.to_dict().values()) == 3
    batch = wait_ended(client, batch.id)
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.processing) == (2, 1, 0)
    first, second, third = client.messages.batches.results(batch.id)
    assert (first.custom_id, second.custom_id, third.custom_id) == ("a", "b", "c")
    assert first.result.message.content[0].text == reference("<user>one", 4)[1]
    assert second.result.type == "errored"
    assert batch.id in [each.id for each in client.messages.batches.list(limit=2)]
    client.messages.batches.delete(batch.id)
    with pytest.raises(sdk.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_a_batch_of_messages_is_cancelled(client: Anthropic) -> None:
    requests: Any = [
        {"custom_id": name, "params": params(name, max_tokens=3000)} for name in ("a", "b", "c")
    ]
    batch = client.messages.batches.create(requests=requests)
    client.messages.batches.cancel(batch.id)
    counts = wait_ended(client, batch.id).request_counts
    assert counts.canceled + counts.succeeded == 3
    assert counts.canceled


def test_a_wrong_request_refuses_its_batch_by_its_place(client: Anthropic) -> None:
    requests: Any = [
        {"custom_id": "a", "params": params("one")},
        {"custom_id": "b", "params": params("two", temperature=-1)},
    ]
    with pytest.raises(sdk.BadRequestError, match=r"requests\.1: temperature"):
        client.messages.batches.create(requests=requests)
    requests[1] = requests[0]
    with pytest.raises(sdk.BadRequestError, match="custom_id is given twice"):
        client.messages.batches.create(requests=requests)


def test_a_batch_of_another_tenant_does_not_exist(client: Anthropic, site: Site) -> None:
    batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": params("one")}])
    with client_of(site, make_key(site.mill, tenant="stranger")) as other:
        calls: list[Callable[[], Any]] = [
            lambda: other.messages.batches.retrieve(batch.id),
            lambda: other.messages.batches.cancel(batch.id),
            lambda: other.messages.batches.delete(batch.id),
            lambda: other.messages.batches.results(batch.id),
        ]
        for call in calls:
            with pytest.raises(sdk.NotFoundError):
                call()
        assert list(other.messages.batches.list()) == []
