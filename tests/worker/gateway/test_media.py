"""Pictures in the requests of stock clients: chat, responses, messages, and lines of batches."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import anthropic
import openai as sdk
import pytest
from openai import OpenAI

from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.worker.gateway.api_errors import ApiError
from batchmill.worker.gateway.media_takers import MediaTakers, check_media_taken
from batchmill.worker.gateway.message_request import read_message_request
from batchmill.worker.gateway.response_request import read_response

from ...support.pictures import data_url, decoded, png, rendered
from .conftest import DEADLINE_S, Site

Reference = Callable[..., tuple[list[int], str]]
URL = "https://pictures.example/a.png"


def test_a_chat_takes_a_picture(openai: OpenAI, site: Site, reference: Reference) -> None:
    content: Any = [
        {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "auto"}},
        {"type": "text", "text": "What?"},
    ]
    answer = openai.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], max_tokens=4, seed=7
    )
    assert answer.choices[0].message.content == reference(rendered(decoded()), 4)[1]


def test_a_response_takes_a_picture_and_the_next_one_sees_it_again(
    openai: OpenAI, reference: Reference
) -> None:
    parts: Any = [
        {"type": "input_image", "image_url": data_url(png()), "detail": "auto"},
        {"type": "input_text", "text": "What?"},
    ]
    first = openai.responses.create(
        model="demo",
        input=[{"role": "user", "content": parts}],
        max_output_tokens=4,
        extra_body={"seed": 7},
    )
    assert first.output_text == reference(rendered(decoded()), 4)[1]
    second = openai.responses.create(
        model="demo",
        input="Sure?",
        previous_response_id=first.id,
        max_output_tokens=4,
        extra_body={"seed": 7},
    )
    assert second.status in ("completed", "incomplete")
    assert second.output_text


def test_a_message_takes_a_picture(site: Site, reference: Reference) -> None:
    root = site.url.removesuffix("/v1")
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    with anthropic.Anthropic(
        base_url=root, api_key=site.secret, max_retries=0, timeout=DEADLINE_S
    ) as client:
        message: Any = client.messages.create(
            model="demo",
            messages=[{"role": "user", "content": content}],
            max_tokens=4,
            extra_body={"seed": 7},
        )
    assert message.content[0].text == reference(rendered(decoded()), 4)[1]


def test_a_bad_picture_is_refused_by_name(openai: OpenAI) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": data_url(b"<svg></svg>")}}]
    with pytest.raises(sdk.BadRequestError) as refusal:
        openai.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": content}], max_tokens=4
        )
    assert "PNG, JPEG" in str(refusal.value)
    assert refusal.value.param == "messages.0.content"


def test_urls_of_both_apis_reach_the_job() -> None:
    block = {"type": "image", "source": {"type": "url", "url": URL}}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "What?"}]}]
    body = {"model": "demo", "max_tokens": 4, "messages": messages}
    fields, _ = read_message_request(body)
    assert [part.url for part in parse_job(fields).media] == [URL]
    item = {"role": "user", "content": [{"type": "input_image", "image_url": URL}]}
    fields, _ = read_response({"model": "demo", "input": [item]})
    assert [part.url for part in parse_job(fields).media] == [URL]


def takers_of(*workers: dict[str, Any]) -> MediaTakers:
    """Return what heartbeats of workers with these fields say."""
    takers = MediaTakers()
    for fields in workers:
        takers.add(
            WorkerInfo("w", "demo", "", (), 1, 1, 1, **{"state": "ready", "versions": (), **fields})
        )
    return takers


@pytest.mark.parametrize(
    ("workers", "code"),
    [
        pytest.param([{"media": ()}], "unsupported_parameter", id="model-of-text"),
        pytest.param([{"media": ("audio",)}], "unsupported_parameter", id="model-of-sounds"),
        pytest.param([{"media": (), "lacks": ("media",)}], "media_unavailable", id="no-extra"),
        pytest.param([{"media": (), "lacks": ("media",)}, {"media": ("image",)}], None, id="one"),
        pytest.param([{"media": ()}, {"media": (), "state": "starting"}], None, id="one-starts"),
        pytest.param([{"media": None}], None, id="older-version"),
    ],
)
def test_a_picture_that_no_worker_takes_is_refused_at_submit(
    workers: list[dict[str, Any]], code: str | None
) -> None:
    takers = takers_of(*workers)
    if code is None:
        check_media_taken(takers, "demo", {"image"})
        return
    with pytest.raises(ApiError, match="pictures") as refusal:
        check_media_taken(takers, "demo", {"image"})
    assert refusal.value.code == code
    check_media_taken(None, "demo", {"image"})


def test_models_say_which_media_they_take(openai: OpenAI) -> None:
    assert openai.models.retrieve("demo").to_dict()["media"] == ["audio", "image"]
