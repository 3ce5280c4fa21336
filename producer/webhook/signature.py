"""Webhook signatures: made by the deliverer, checked by the receiver.

Source: Standard Webhooks 1.0.0 (symmetric signatures). The headers are `webhook-id`, the same in
every attempt, so that a receiver can drop what it has seen; `webhook-timestamp`, unix seconds of
this attempt; and `webhook-signature`, `v1,` and the base64 HMAC-SHA256 of
`id.timestamp.body`, once for every secret that is valid now, separated by spaces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets as randomness
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.errors import SignatureError

_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24
_MAX_SECRET_BYTES = 64


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook whose signature was right.

    Delivery is at least once and in no promised order: keep the ids seen for as long as the sender
    retries (76 hours by default), and drop an event whose id is known.
    """

    #: The same in every attempt.
    id: str
    #: `generation.completed`, `.failed`, `.cancelled`, `.expired`; where the job asked for
    #: them, `.started` and `.output` too.
    type: str
    #: When it happened, ISO 8601.
    timestamp: str
    #: The job: `id`, `status`, `finish_reason`, `usage`, `metadata`, `error` …
    data: dict[str, Any]


def new_secret() -> str:
    """Return a fresh signing secret of 32 random bytes."""
    return _PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()


def sign(secret: str, event_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of one attempt, `v1,<base64>`.

    Raises:
        ValueError: the secret is malformed, or the event id holds a dot.
    """
    if "." in event_id:
        raise ValueError(f"event id {event_id!r} holds a dot, which ends it in the signed text")
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp_s, body)
    digest = hmac.new(_secret_bytes(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signature_headers(
    event_id: str, timestamp_s: int, body: bytes, *, secrets: Sequence[str]
) -> dict[str, str]:
    """Return the headers of one attempt, signed with each secret.

    Raises:
        ValueError: there is no secret, or one is malformed.
    """
    if not secrets:
        raise ValueError("no webhook secret: set BATCHMILL_WEBHOOK_SECRET")
    signatures = [sign(secret, event_id, timestamp_s, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    tolerance_s: int = 300,
    now_s: float | None = None,
) -> WebhookEvent:
    """Check a received webhook and return its event. Call it before reading anything of the body.

    Args:
        body: the raw bytes as received; a body parsed and written again has other bytes.
        headers: the request's headers; names in any case.
        secrets: the endpoint's secret, or several while one replaces another.
        tolerance_s: how far the attempt's time may lie from now, either way: older is a replay.
        now_s: unix time; for tests.

    Raises:
        SignatureError: a header is missing or malformed, the time is too far off, no signature
            fits, or the signed body is not an event. Answer 401.
        ValueError: one of our own secrets is malformed. Not the sender's fault: answer 500.
    """
    own = [secrets] if isinstance(secrets, str) else list(secrets)
    if not own:
        raise ValueError("no secret was given to verify with")
    lowered = {name.lower(): value for name, value in headers.items()}
    event_id = _header(lowered, "webhook-id")
    timestamp_s = _timestamp(_header(lowered, "webhook-timestamp"))
    now_s = time.time() if now_s is None else now_s
    if abs(now_s - timestamp_s) > tolerance_s:
        raise SignatureError(
            f"webhook-timestamp is {timestamp_s}, more than {tolerance_s} s from now"
        )
    if "." in event_id or not event_id.isascii():
        raise SignatureError("webhook-id holds a dot or a letter outside ASCII")
    received = _signatures(_header(lowered, "webhook-signature"))
    expected = [sign(secret, event_id, timestamp_s, body).encode() for secret in own]
    # Every pair is compared, without a short cut, so that the time taken tells nothing.
    matches = [hmac.compare_digest(a, b) for a in expected for b in received]
    if not any(matches):
        raise SignatureError("no signature in webhook-signature fits: wrong secret or changed body")
    return _event(event_id, body)


def _secret_bytes(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        raise ValueError(f"a webhook secret starts with {_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a webhook secret is {_PREFIX} and base64: {error}") from None
    if not _MIN_SECRET_BYTES <= len(key) <= _MAX_SECRET_BYTES:
        raise ValueError(
            f"a webhook secret holds {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes, "
            f"this one {len(key)}; make one with batchmill.producer.new_secret()"
        )
    return key


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value:
        raise SignatureError(f"header {name} is missing")
    return value


def _timestamp(text: str) -> int:
    # int() alone would take "1_0", " 1" and other digits than ours.
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise SignatureError("webhook-timestamp is not a number of seconds")
    return int(text)


def _signatures(text: str) -> list[bytes]:
    """The v1 signatures of a header, as bytes; others are of schemes we do not check."""
    if not text.isascii():
        raise SignatureError("webhook-signature holds a letter outside ASCII")
    found = [part.encode() for part in text.split(" ") if part.startswith("v1,")]
    if not found:
        raise SignatureError("webhook-signature holds no v1 signature")
    return found


def _event(event_id: str, body: bytes) -> WebhookEvent:
    try:
        content = json.loads(body)
        return WebhookEvent(
            id=event_id,
            type=str(content["type"]),
            timestamp=str(content["timestamp"]),
            data=dict(content["data"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"the signed body is not an event: {type(error).__name__}") from None
