"""Webhook signatures agree with the public library; every defect raises `SignatureError`."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from email.message import Message
from typing import Any

import pytest
import standardwebhooks

from batchmill.producer.errors import SignatureError
from batchmill.producer.webhook.signature import (
    new_secret,
    sign,
    signature_headers,
    verify_webhook,
)

EVENT_ID = "evt_gen_1_completed"
BODY = json.dumps(
    {
        "type": "generation.completed",
        "timestamp": "2026-11-23T12:00:00.000Z",
        "data": {"id": "gen_1", "status": "completed", "metadata": {"city": "Zürich"}},
    },
    ensure_ascii=False,
).encode()


def now_s() -> int:
    return int(time.time())


def test_the_public_library_accepts_our_signature() -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    parsed = standardwebhooks.Webhook(secret).verify(BODY, headers)
    assert parsed["data"]["id"] == "gen_1"


def test_we_accept_the_public_library_s_signature() -> None:
    secret = new_secret()
    moment = datetime.now(tz=UTC)
    signature = standardwebhooks.Webhook(secret).sign(EVENT_ID, moment, BODY.decode())
    headers = {
        "Webhook-Id": EVENT_ID,
        "Webhook-Timestamp": str(int(moment.timestamp())),
        "Webhook-Signature": signature,
    }
    event = verify_webhook(BODY, headers, secret)
    assert (event.id, event.type) == (EVENT_ID, "generation.completed")
    assert event.data["metadata"] == {"city": "Zürich"}


def test_old_and_new_secret_both_verify_while_one_replaces_the_other() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[new, old])
    for secrets in (old, new, [other, old]):
        assert verify_webhook(BODY, headers, secrets).id == EVENT_ID
    assert standardwebhooks.Webhook(old).verify(BODY, headers)["data"]["id"] == "gen_1"
    with pytest.raises(SignatureError, match="wrong secret"):
        verify_webhook(BODY, headers, other)


@pytest.mark.parametrize("offset_s", [-301, 301])
def test_an_attempt_outside_the_tolerance_is_refused(offset_s: int) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, 1_000_000 + offset_s, BODY, secrets=[secret])
    with pytest.raises(SignatureError, match="300 s"):
        verify_webhook(BODY, headers, secret, now_s=1_000_000)


@pytest.mark.parametrize("offset_s", [-300, 300])
def test_an_attempt_at_the_edge_of_the_tolerance_is_accepted(offset_s: int) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, 1_000_000 + offset_s, BODY, secrets=[secret])
    assert verify_webhook(BODY, headers, secret, now_s=1_000_000).id == EVENT_ID


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("webhook-id", ""),
        ("webhook-id", "evt_gen_2_completed"),
        ("webhook-id", "evt.1"),
        ("webhook-id", "evt_\ud800"),
        ("webhook-signature", "v1,\ud800"),
        ("webhook-timestamp", ""),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "1_0"),
        ("webhook-timestamp", "٣"),
        ("webhook-timestamp", "nan"),
        ("webhook-timestamp", "9" * 400),
        ("webhook-signature", ""),
        ("webhook-signature", "garbage"),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,%%%not-base64"),
        ("webhook-signature", "v1,ü"),
        ("webhook-signature", "v2,AAAA"),
        ("webhook-signature", "v1a,AAAA"),
    ],
)
def test_a_defect_in_a_header_is_a_signature_error(header: str, value: str) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    headers[header] = value
    with pytest.raises(SignatureError):
        verify_webhook(BODY, headers, secret)


def test_a_changed_body_is_refused() -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    with pytest.raises(SignatureError):
        verify_webhook(BODY + b" ", headers, secret)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"type":"x"}', b"\xff", b"1"])
def test_a_signed_body_that_is_not_an_event_is_a_signature_error(body: bytes) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), body, secrets=[secret])
    with pytest.raises(SignatureError, match="not an event"):
        verify_webhook(body, headers, secret)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "secret", "whsec_%", "whsec_AAAAA"])
def test_a_malformed_secret_of_the_receiver_is_not_the_fault_of_the_sender(secret: str) -> None:
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[new_secret()])
    with pytest.raises(ValueError, match="secret"):
        verify_webhook(BODY, headers, secret)
    with pytest.raises(ValueError, match="secret"):
        sign(secret, EVENT_ID, 0, BODY)


def test_a_missing_secret_is_an_error() -> None:
    with pytest.raises(ValueError, match="no webhook secret"):
        signature_headers(EVENT_ID, 0, BODY, secrets=[])
    with pytest.raises(ValueError, match="at least one secret"):
        verify_webhook(BODY, {}, [])


def in_shapes(headers: dict[str, str]) -> dict[str, Any]:
    """Return headers as frameworks give them."""
    return {
        "lists": {name: [value] for name, value in headers.items()},
        "bytes": {name: value.encode() for name, value in headers.items()},
        "ASGI": [(name.encode(), value.encode()) for name, value in headers.items()],
        "pairs": tuple((name.title(), value) for name, value in headers.items()),
        "repeated": [(name, value) for name, value in headers.items() for _ in range(2)],
        "a message": Message(),
    }


@pytest.mark.parametrize("shape", ["lists", "bytes", "ASGI", "pairs", "repeated", "a message"])
def test_headers_are_read_in_every_shape_of_the_frameworks(shape: str) -> None:
    secret = new_secret()
    own = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    headers = in_shapes(own)[shape]
    if isinstance(headers, Message):
        for name, value in own.items():
            headers[name] = value
    assert verify_webhook(BODY, headers, secret).id == EVENT_ID


@pytest.mark.parametrize("body", [BODY.decode(), bytearray(BODY), memoryview(BODY)])
def test_the_body_may_be_text_or_any_bytes(body: Any) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    assert verify_webhook(body, headers, secret).data["metadata"] == {"city": "Zürich"}


def test_a_text_that_was_decoded_with_losses_is_refused() -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    for body in (BODY.decode("ascii", "replace"), BODY.decode("ascii", "surrogateescape")):
        with pytest.raises(SignatureError, match="does not match"):
            verify_webhook(body, headers, secret)


def test_two_values_of_a_header_are_refused() -> None:
    secret = new_secret()
    headers: dict[str, Any] = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    headers["webhook-id"] = [EVENT_ID, "evt_other"]
    with pytest.raises(SignatureError, match="webhook-id has 2 different values"):
        verify_webhook(BODY, headers, secret)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": json.loads(BODY)}, "body must be the raw body of the request, bytes or str, not"),
        ({"body": None}, "not NoneType: take it before it is parsed"),
        ({"headers": "webhook-id: x"}, "headers must be a mapping .* not str"),
        ({"headers": None}, "headers must be a mapping .* not NoneType"),
        ({"headers": ["webhook-id"]}, "headers must be a mapping .* not list"),
        ({"headers": {"webhook-id": 7}}, "headers must be a mapping"),
        ({"headers": {"webhook-id": [7]}}, "must be str or bytes, not int"),
        ({"secrets": b"whsec_"}, "secrets must be a str or a list of them, not bytes"),
        ({"secrets": None}, "secrets must be a str or a list of them, not NoneType"),
    ],
)
def test_an_argument_of_another_type_is_named(changes: dict[str, Any], message: str) -> None:
    secret = new_secret()
    headers = signature_headers(EVENT_ID, now_s(), BODY, secrets=[secret])
    with pytest.raises(TypeError, match=message):
        verify_webhook(**{"body": BODY, "headers": headers, "secrets": secret} | changes)


def test_an_event_id_with_a_dot_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="dot"):
        sign(new_secret(), "evt.1", 0, BODY)
