"""Webhook signatures: the deliverer signs, the receiver verifies.

Source: Standard Webhooks 1.0.0 (symmetric signatures). The headers are `webhook-id`, the same in
every attempt, so that a receiver can drop repeats; `webhook-timestamp`, unix seconds of this
attempt; and `webhook-signature`, `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`, one per
secret that is currently valid, separated by spaces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets as randomness
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batchmill.producer.errors import SignatureError

from .received_headers import ReceivedHeaders, read_header
from .secret_list import valid_secrets

_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24
_MAX_SECRET_BYTES = 64


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook event whose signature was valid.

    Delivery is at least once and in any order: remember ids for as long as the sender retries
    (76 hours by default), and drop an event whose id is known.
    """

    #: The same in every attempt.
    id: str
    #: `generation.completed`, `.failed`, `.cancelled`, `.expired`; also `.started` and `.output`
    #: if the job asked for them.
    type: str
    #: When the event happened, ISO 8601.
    timestamp: str
    #: The job: `id`, `status`, `finish_reason`, `usage`, `metadata`, `error` …
    data: dict[str, Any]

    @property
    def happened_at(self) -> datetime:
        """When the event happened, as a datetime in UTC.

        Raises:
            ValueError: another program has signed an event whose time cannot be read.
        """
        found = datetime.fromisoformat(self.timestamp)
        if found.tzinfo is None:
            raise ValueError(f"the time of event {self.id!r} has no zone: {self.timestamp!r}")
        return found.astimezone(UTC)


def new_secret() -> str:
    """Return a fresh signing secret of 32 random bytes."""
    return _PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()


def sign(secret: str, event_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of one attempt, `v1,<base64>`.

    Raises:
        ValueError: the secret is malformed, or the event id contains a dot.
    """
    if "." in event_id:
        raise ValueError(f"event id {event_id!r} contains a dot, the separator of the signed text")
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp_s, body)
    digest = hmac.new(_secret_bytes(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signature_headers(
    event_id: str, timestamp_s: int, body: bytes, *, secrets: Sequence[str]
) -> dict[str, str]:
    """Return the headers of one attempt, signed with each secret.

    Raises:
        ValueError: `secrets` is empty, or one is malformed.
    """
    if not secrets:
        raise ValueError("no webhook secret is set: set BATCHMILL_WEBHOOK_SECRET")
    signatures = [sign(secret, event_id, timestamp_s, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }


def verify_webhook(
    body: bytes | bytearray | memoryview | str,
    headers: ReceivedHeaders,
    secrets: str | Sequence[str],
    *,
    tolerance_s: int = 300,
    now_s: float | None = None,
) -> WebhookEvent:
    """Verify a received webhook and return its event. Call it before you use the body.

    Args:
        body: The raw body as received, as bytes or as the text that they encode in UTF-8; one
            that was parsed and serialised again differs.
        headers: The headers of the request: a mapping whose values are text, bytes or lists of
            them, or pairs of name and value. The case of names does not matter.
        secrets: The secret of the endpoint, or several while one replaces another. A text may also
            be a value of the deliverer's setting: secrets with commas, old ones with the time at
            which they end.
        tolerance_s: Largest allowed distance of the attempt's time from now, against replays.
        now_s: Unix time, for tests.

    Raises:
        SignatureError: a header is missing or malformed, the time is too far off, no signature
            matches, or the signed body is not an event. Respond with 401.
        ValueError: one of the given secrets is malformed. Respond with 500: the sender is not at
            fault.
        TypeError: an argument has another type, such as a body that was parsed.
    """
    now_s = time.time() if now_s is None else now_s
    own = _own_secrets(secrets, now_s)
    raw = _raw_body(body)
    event_id = read_header(headers, "webhook-id")
    timestamp_s = _timestamp(read_header(headers, "webhook-timestamp"))
    if abs(now_s - timestamp_s) > tolerance_s:
        raise SignatureError(
            f"webhook-timestamp is {timestamp_s}, more than {tolerance_s} s from now"
        )
    if "." in event_id or not event_id.isascii():
        raise SignatureError("webhook-id contains a dot or a character outside ASCII")
    received = _signatures(read_header(headers, "webhook-signature"))
    expected = [sign(secret, event_id, timestamp_s, raw).encode() for secret in own]
    # Compare every pair without a shortcut, so that the time taken reveals nothing.
    matches = [hmac.compare_digest(a, b) for a in expected for b in received]
    if not any(matches):
        raise SignatureError("webhook-signature does not match: wrong secret or changed body")
    return _event(event_id, raw)


def _secret_bytes(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        raise ValueError(f"a webhook secret must start with {_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a webhook secret must be {_PREFIX} and base64: {error}") from None
    if not _MIN_SECRET_BYTES <= len(key) <= _MAX_SECRET_BYTES:
        raise ValueError(
            f"a webhook secret must have {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes, "
            f"this one has {len(key)}; make one with batchmill.producer.new_secret()"
        )
    return key


def _own_secrets(secrets: object, now_s: float) -> list[str]:
    given = [secrets] if isinstance(secrets, str) else secrets
    if not isinstance(given, Sequence) or not all(isinstance(value, str) for value in given):
        raise TypeError(f"secrets must be a str or a list of them, not {type(secrets).__name__}")
    own = [secret for value in given for secret in valid_secrets(value, now_s=now_s)]
    if not own:
        raise ValueError("secrets must contain at least one secret that has not ended")
    return own


def _raw_body(body: object) -> bytes:
    if isinstance(body, str):
        # A lone surrogate stands for bytes that were not UTF-8: then no signature can match.
        return body.encode("utf-8", "surrogatepass")
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(
        f"body must be the raw body of the request, bytes or str, not {type(body).__name__}: take "
        "it before it is parsed"
    )


def _timestamp(text: str) -> int:
    # int() alone would accept "1_0", " 1" and digits outside ASCII.
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise SignatureError("webhook-timestamp must be a whole number of seconds")
    return int(text)


def _signatures(text: str) -> list[bytes]:
    """Return the v1 signatures of a header, as bytes; other schemes are ignored."""
    if not text.isascii():
        raise SignatureError("webhook-signature contains a character outside ASCII")
    found = [part.encode() for part in text.split(" ") if part.startswith("v1,")]
    if not found:
        raise SignatureError("webhook-signature contains no v1 signature")
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
