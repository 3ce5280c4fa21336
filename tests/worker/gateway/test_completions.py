"""The stock OpenAI client gets chat and text completions, whole and as streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai as sdk
import pytest
from openai import OpenAI

from .conftest import Site

Reference = Callable[..., tuple[list[int], str]]
HELLO: Any = [{"role": "user", "content": "hello"}]


def expected(reference: Reference, num_tokens: int) -> str:
    return reference("<user>hello", num_tokens)[1]


def test_a_chat_completion_is_the_job_of_its_request_id(
    openai: OpenAI, site: Site, reference: Reference
) -> None:
    raw = openai.chat.completions.with_raw_response.create(
        model="demo", messages=HELLO, max_tokens=5, seed=7, metadata={"team": "a"}
    )
    completion = raw.parse()
    (choice,) = completion.choices
    assert choice.message.content == expected(reference, 5)
    assert (choice.finish_reason, completion.object) == ("length", "chat.completion")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    record = site.mill.record(str(raw.headers["x-request-id"]))
    assert completion.id == record.id
    assert json.loads(record.document)["metadata"] == {"team": "a"}


def test_a_stream_has_the_same_text_and_ends_with_the_usage(
    openai: OpenAI, reference: Reference
) -> None:
    stream = openai.chat.completions.create(
        model="demo",
        messages=HELLO,
        max_tokens=1000,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected(reference, 1000)
    assert len([text for text in texts if text]) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 1000
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_text_completion_takes_one_prompt_or_several(
    openai: OpenAI, reference: Reference
) -> None:
    one = openai.completions.create(model="demo", prompt="hello", max_tokens=3, seed=7)
    assert one.choices[0].text == reference("hello", 3)[1]
    two = openai.completions.create(model="demo", prompt=["a", "b"], max_tokens=3, seed=7)
    assert [choice.text for choice in two.choices] == [reference(p, 3)[1] for p in ("a", "b")]
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.usage is not None
    assert two.usage.completion_tokens == 6


async def ask_async(site: Site) -> str:
    async with sdk.AsyncOpenAI(base_url=site.url, api_key=site.secret, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=9, seed=7, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_asyncio_client_streams(site: Site, reference: Reference) -> None:
    assert asyncio.run(ask_async(site)) == expected(reference, 9)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"stream_options": {"bogus": 1}}, "stream_options.bogus"),
        ({"bogus_field": 1}, "bogus_field"),
        ({"tenant": "another"}, "tenant"),
        ({"cancel_on_disconnect": 1}, "cancel_on_disconnect"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    openai: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        openai.chat.completions.create(model="demo", messages=HELLO, extra_body=fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


def test_what_the_engine_refuses_is_the_callers_error(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        openai.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "long " * 5000}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_a_failed_job_is_not_repeated_by_the_client(openai: OpenAI) -> None:
    with pytest.raises(sdk.InternalServerError) as caught:
        openai.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "<<error@2>>"}]
        )
    assert caught.value.code == "numerical_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    stream = openai.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "<<error@2>>"}], stream=True
    )
    with pytest.raises(sdk.APIError, match="not finite"):
        list(stream)


def test_an_unknown_model_is_named_with_those_that_exist(openai: OpenAI) -> None:
    with pytest.raises(sdk.NotFoundError, match="there are: demo") as caught:
        openai.chat.completions.create(model="nope", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert [model.id for model in openai.models.list()] == ["demo"]
    assert openai.models.retrieve("demo").owned_by == "batchmill"


def test_an_idempotency_key_makes_one_job(openai: OpenAI) -> None:
    def ask(content: str) -> str:
        raw = openai.chat.completions.with_raw_response.create(
            model="demo",
            messages=[{"role": "user", "content": content}],
            max_tokens=2,
            extra_headers={"Idempotency-Key": "once"},
        )
        return str(raw.headers["x-request-id"])

    assert ask("one") == ask("one")
    with pytest.raises(sdk.ConflictError) as caught:
        ask("another")
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("cancels", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_only_a_client_that_asks_for_it_cancels_by_going_away(
    http: httpx2.Client, site: Site, *, cancels: bool, stream: bool
) -> None:
    tag = f"gone-{cancels}-{stream}"
    body = {
        "messages": HELLO,
        "max_tokens": 300,
        "stream": stream,
        "cancel_on_disconnect": cancels,
        "tags": [tag],
    }
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.3)
    ids: Any = site.mill.store.client.zrange(f"batchmill:jobs:tag:{tag}", 0, -1)
    (record,) = site.mill.wait_ended(ids[0].decode(), timeout_s=60)
    assert record.state.value == ("cancelled" if cancels else "completed")
