"""Which queue elements are accepted as messages, and which are refused with a reason."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.store.letter_labels import NO_LABELS, kept_element, message_labels
from batchmill.worker.consumer.message_body import MAX_MESSAGE_BYTES
from batchmill.worker.consumer.queue_message import read_queue_message
from batchmill.worker.consumer.refused_task import read_sender
from batchmill.worker.errors import MalformedMessage

DELIVERY = {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": "tag"}


def element(
    parts: Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, Any] | None = None,
    **changes: Any,
) -> bytes:
    """Return a good element, with changed headers and other changed parts."""
    message = {
        "body": '[[], {"job": "gen_1", "v": 1}, {}]',
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": TASK_NAME, "id": "gen_1", **(headers or {})},
        "properties": DELIVERY,
    }
    return json.dumps({**message, **(parts or {}), **changes}).encode()


def test_a_minimal_message_of_another_language_is_accepted() -> None:
    message = json.loads(element())
    del message["content-encoding"]

    checked = read_queue_message(json.dumps(message).encode())

    assert (checked.delivery_tag, checked.is_announcement) == ("tag", True)


@pytest.mark.parametrize(
    ("body", "is_announcement"),
    [
        ('[[], {"job": "gen_1"}, {"callbacks": null}]', True),
        ('[[], {"job": {"prompt": "x"}}, {}]', False),
        ('[[{"prompt": "x"}], {}, null]', False),
        ("[[], {}, {}]", False),
    ],
)
def test_an_announcement_is_distinguished_from_a_job_in_its_message(
    body: str, is_announcement: bool
) -> None:
    plain = element(body=body)
    encoded = element(
        body=base64.b64encode(body.encode()).decode(),
        properties={**DELIVERY, "body_encoding": "base64"},
    )

    assert read_queue_message(plain).is_announcement is is_announcement
    assert read_queue_message(encoded).is_announcement is is_announcement


def protocol_1(**changes: Any) -> bytes:
    """Return a message as Celery 3 wrote it, and as celery-node can: all of it in the body."""
    task = {"task": TASK_NAME, "id": "t-1", "args": [], "kwargs": {"job": {"prompt": "x"}}}
    body = base64.b64encode(json.dumps({**task, **changes}).encode()).decode()
    message = json.loads(element(body=body, properties={**DELIVERY, "body_encoding": "base64"}))
    return json.dumps(message | {"headers": {}}).encode()


def test_a_message_of_celery_protocol_1_is_converted_to_protocol_2() -> None:
    checked = read_queue_message(protocol_1(retries=0, eta=None, taskset=None))

    headers = checked.message["headers"]
    assert headers == {"task": TASK_NAME, "id": "t-1", "retries": 0, "eta": None}
    assert json.loads(checked.message["body"]) == [[], {"job": {"prompt": "x"}}, {}]
    assert not checked.message["properties"]["body_encoding"]
    assert not checked.is_announcement


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "os.system"}, "unknown_task"),
        ({"id": None}, "no_id"),
        ({"id": "\ud800"}, "lone_surrogate"),
        ({"id": {"__type__": "decimal", "__value__": "1"}}, "bad_body"),
        ({"kwargs": {"job": {"__type__": "decimal", "__value__": "1"}}}, "bad_body"),
        ({"args": {"a": 1}}, "bad_body"),
        ({"expires": "soon"}, "bad_header"),
    ],
)
def test_a_bad_message_of_protocol_1_is_refused_like_one_of_protocol_2(
    changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(MalformedMessage) as caught:
        read_queue_message(protocol_1(**changes))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "headers",
    [
        {"eta": None, "expires": None, "timelimit": [None, None], "retries": 0, "shadow": None},
        {"eta": "2030-01-01T00:00:00+00:00", "timelimit": [10, 5.5], "stamped_headers": []},
        {"eta": "", "expires": ""},
    ],
)
def test_headers_that_celery_writes_are_accepted(headers: dict[str, Any]) -> None:
    assert read_queue_message(element(headers=headers)).is_announcement


@pytest.mark.parametrize(
    "headers",
    [
        {"eta": 5},
        {"eta": "tomorrow"},
        {"expires": "soon"},
        {"expires": ["2030-01-01"]},
        {"timelimit": "10"},
        {"timelimit": [1]},
        {"timelimit": ["a", "b"]},
        {"timelimit": [True, None]},
        {"shadow": 3},
        {"retries": "1"},
        {"stamped_headers": 5},
        {"stamped_headers": ["a", {"b": 1}]},
        {"stamps": ["x"]},
    ],
)
def test_headers_that_would_stop_celery_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match=f"headers.{next(iter(headers))} "):
        read_queue_message(element(headers=headers))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (element()[:-20], "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'"text"', "not_a_message"),
        (element(properties=[]), "no_properties"),
        (element(properties={**DELIVERY, "delivery_tag": 7}), "no_delivery_tag"),
        (element(properties={**DELIVERY, "delivery_info": "x"}), "no_delivery_info"),
        (element(properties={**DELIVERY, "delivery_info": {"exchange": ""}}), "no_delivery_info"),
        (element(headers={"id": None}), "no_id"),
        (element(headers={"id": 7}), "no_id"),
        (element(headers={"id": "x" * 256}), "bad_id"),
        (element(headers={"task": None}), "no_task"),
        (element(headers={"task": "celery.backend_cleanup"}), "unknown_task"),
        (element(headers={"compression": "zlib"}), "compression"),
        (element({"content-type": None}), "content_type"),
        (element({"content-type": "application/x-yaml"}), "content_type"),
        (element({"content-encoding": "utf-16"}), "content_encoding"),
        (element(body={"job": "x"}), "no_body"),
        (element(properties={**DELIVERY, "body_encoding": "base64"}), "body_encoding"),
        (element(properties={**DELIVERY, "body_encoding": "rot13"}), "body_encoding"),
        (element(body="[[], {}]"), "bad_body"),
        (element(body="[{}, [], {}]"), "bad_body"),
        (element(body='[[], {"job": "gen_1"'), "body_not_json"),
        # kombu converts such an object, or fails to; Celery then logs the whole body.
        (element(body='[[], {"job": {"__type__": "no", "__value__": 1}}, {}]'), "body_not_json"),
        (element(body='[[], {"__type__": "decimal", "__value__": "x"}, {}]'), "body_not_json"),
        (
            element(
                body=base64.b64encode("[[], {}, {}]".encode("utf-16")).decode(),
                properties={**DELIVERY, "body_encoding": "base64"},
            ),
            "body_not_json",
        ),
        (element(properties={**DELIVERY, "delivery_tag": "\ud800"}), "lone_surrogate"),
        (element(headers={"id": "\ud800"}), "lone_surrogate"),
    ],
)
def test_an_element_that_no_worker_can_run_is_refused_with_a_reason(raw: bytes, code: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        read_queue_message(raw)

    assert caught.value.code == code
    assert len(str(caught.value)) < 200


def compressed(body: bytes, compression: str) -> bytes:
    """Return an element with a compressed body, as kombu sends it."""
    return element(
        {"body": base64.b64encode(body).decode()},
        headers={"compression": compression},
        properties={**DELIVERY, "body_encoding": "base64"},
    )


METHODS = {"application/x-gzip": zlib, "application/x-bz2": bz2, "application/x-lzma": lzma}


@pytest.mark.parametrize("method", METHODS)
def test_a_compressed_body_is_read_and_passed_on_plain(method: str) -> None:
    content = b'[[], {"job": "stored"}, {}]'
    checked = read_queue_message(compressed(METHODS[method].compress(content), method))
    assert checked.is_announcement
    assert json.loads(checked.message["body"]) == json.loads(content)
    assert checked.message["properties"]["body_encoding"] is None
    assert "compression" not in checked.headers


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb_is_refused_before_it_is_decompressed(method: str) -> None:
    bomb = METHODS[method].compress(b" " * (200 << 20))
    tracemalloc.start()
    with pytest.raises(MalformedMessage) as caught:
        read_queue_message(compressed(bomb, method))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.code == "too_large"
    assert peak_bytes < 100 << 20


def test_a_message_that_is_far_too_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing half a gigabyte holds up all threads of the worker for seconds, again and again."""
    data = element({"body": " " * MAX_MESSAGE_BYTES}, properties={"correlation_id": "task-1"})

    def parse(*_: object) -> None:
        pytest.fail("it was parsed")

    monkeypatch.setattr(json, "loads", parse)
    with pytest.raises(MalformedMessage, match=r"bytes, the limit is \d+; shorten") as caught:
        read_queue_message(data)
    assert caught.value.code == "too_large"
    assert read_sender(data) == {"id": "task-1"}
    assert read_sender(data[:-1000] + b" " * 1000) is None
    assert message_labels(data) == NO_LABELS
    kept, reason = kept_element(data, "too_large: x")
    assert (len(kept), reason[:12]) == (65_536, "too_large: x")


@pytest.mark.parametrize("method", [*METHODS, "application/x-brotli", "\ud800", "zip"])
def test_a_body_that_cannot_be_decompressed_is_refused(method: str) -> None:
    cut = METHODS[method].compress(b"[[], {}, {}]")[:-6] if method in METHODS else b"x"
    for body in (cut, b"no such data", b""):
        with pytest.raises(MalformedMessage) as caught:
            read_queue_message(compressed(body, method))
        assert caught.value.code in ("compression", "lone_surrogate")
