"""Explanations over HTTP: in every body and stream that has an output, and refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from anthropic import Anthropic
from openai import BadRequestError, OpenAI

from .conftest import DEADLINE_S, Site

HELLO: Any = [{"role": "user", "content": "hello"}]
ASKED: Any = {"seed": 7, "explain": ["confidence", "attribution"]}
CHAT: Any = {"model": "demo", "messages": HELLO, "max_tokens": 4, "extra_body": ASKED}
RESPONSE: Any = {"model": "demo", "input": "hello", "max_output_tokens": 4, "extra_body": ASKED}


def anthropic_of(site: Site) -> Anthropic:
    root = site.url.removesuffix("/v1")
    return Anthropic(base_url=root, api_key=site.secret, max_retries=0, timeout=DEADLINE_S)


def chat(openai: OpenAI, _: Site) -> Any:
    return openai.chat.completions.create(**CHAT).model_extra


def streamed_chat(openai: OpenAI, _: Site) -> Any:
    *before, last = openai.chat.completions.create(**CHAT, stream=True)
    assert not any(each.model_extra for each in before)
    assert last.choices[0].finish_reason == "length"
    return last.model_extra


def text(openai: OpenAI, _: Site) -> Any:
    given = {"model": "demo", "prompt": "hello", "max_tokens": 4, "extra_body": ASKED}
    return openai.completions.create(**given).model_extra


def response(openai: OpenAI, _: Site) -> Any:
    return openai.responses.create(**RESPONSE).model_extra


def streamed_response(openai: OpenAI, _: Site) -> Any:
    *_, last = openai.responses.create(**RESPONSE, stream=True)
    return last.response.model_extra


def message(_: OpenAI, site: Site) -> Any:
    return anthropic_of(site).messages.create(**CHAT).model_extra


def streamed_message(_: OpenAI, site: Site) -> Any:
    events = list(anthropic_of(site).messages.create(**CHAT, stream=True))
    (end,) = [event for event in events if event.type == "message_delta"]
    return end.model_extra


@pytest.mark.parametrize(
    "ask",
    [chat, streamed_chat, text, response, streamed_response, message, streamed_message],
    ids=lambda ask: ask.__name__,
)
def test_an_output_comes_with_its_explanation(
    openai: OpenAI, site: Site, ask: Callable[[OpenAI, Site], Any]
) -> None:
    found = ask(openai, site)["explain"]
    assert found.keys() == {"confidence", "attribution", "usage"}
    assert len(found["confidence"]) == 4
    assert found["usage"]["completion_tokens"] == 4


def test_the_most_that_an_explanation_takes_is_told_before_the_first_chunk(openai: OpenAI) -> None:
    raw = openai.chat.completions.with_raw_response.create(**CHAT, stream=True)
    assert int(raw.headers["x-batchmill-explain-tokens"]) > 76 * 4
    raw.http_response.close()
    plain = openai.chat.completions.with_raw_response.create(**{**CHAT, "extra_body": {}})
    assert "x-batchmill-explain-tokens" not in plain.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/decisions", {"state": "x", "questions": {"a": {"type": "yes_no"}}}),
        ("/embeddings", {"input": "x"}),
        ("/score", {"query": "x", "documents": ["y"]}),
        ("/completions", {"prompt": ["a", "b"]}),
    ],
)
def test_what_has_no_single_output_is_not_explained(
    openai: OpenAI, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.post(path, cast_to=object, body=body | {"model": "demo", "explain": ["confidence"]})
    assert refused.value.param == "explain"


@pytest.mark.parametrize(
    ("name", "value"),
    [("select", {"by": "vote"}), ("beam_search", {"beam_width": 2})],
)
def test_a_section_of_one_result_is_not_made_for_several_prompts(
    openai: OpenAI, name: str, value: Any
) -> None:
    with pytest.raises(BadRequestError, match="is for one prompt") as refused:
        openai.completions.create(model="demo", prompt=["a", "b"], n=2, extra_body={name: value})
    assert refused.value.param == name
