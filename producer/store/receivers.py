"""Receivers: URLs that a tenant has registered for types of webhook events.

They get events of all jobs and batches of their tenant, beside the webhooks that these name
themselves. Each has signing secrets of its own, which are kept in Redis, because deliverers need
them.
"""

from __future__ import annotations

import secrets as randomness
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from batchmill.producer.errors import ReceiverRefused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Call, Read, stored
from batchmill.producer.protocol.content import Cipher, Content, Place
from batchmill.producer.webhook.secret_list import (
    DatedSecret,
    format_secrets,
    read_secrets,
    rotate_secrets,
    valid_secrets,
)
from batchmill.producer.webhook.signature import new_secret
from batchmill.producer.webhook.target import ForbiddenTarget, TargetPolicy, read_target

#: Types of events, as receivers name them: ends of batches, of background responses, of jobs.
EVENT_TYPES = (
    *("batch.completed", "batch.failed", "batch.expired", "batch.cancelled"),
    *("response.completed", "response.failed", "response.cancelled", "response.incomplete"),
    *("generation.completed", "generation.failed"),
    *("generation.cancelled", "generation.expired"),
)
#: Of a tenant; `lua/lib/receivers.lua` has the same number.
MAX_RECEIVERS = 20
#: Seconds for which an old secret signs beside a new one, if that is asked for.
OVERLAP_S = 24 * 3600
_MAX_NAME_CHARS = 100
_MAX_URL_CHARS = 2000
_SHOWN_CHARS = 4


class Receiver(BaseModel):
    """A registered receiver, without its secrets."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    id: str
    #: The owner's own name for it.
    name: str
    url: str
    event_types: tuple[str, ...]
    #: Seconds of unix time.
    created_at: int
    updated_at: int
    #: The end of its newest secret.
    signing_secret_hint: str


def make_receiver(
    name: str, url: str, event_types: Sequence[str], policy: TargetPolicy
) -> tuple[Receiver, str]:
    """Return a new receiver and its secret; `put_receiver` stores them.

    Raises:
        ReceiverRefused: a field is invalid, or the URL is not allowed.
    """
    now_s, secret = int(time.time()), new_secret()
    receiver = Receiver(
        id=f"we_{randomness.token_hex(12)}",
        name=name,
        url=url,
        event_types=tuple(event_types),
        created_at=now_s,
        updated_at=now_s,
        signing_secret_hint=_hint(secret),
    )
    check_receiver(receiver, policy)
    return receiver, secret


def changed_receiver(receiver: Receiver, changes: dict[str, Any], policy: TargetPolicy) -> Receiver:
    """Return a receiver with other fields.

    Raises:
        ReceiverRefused: a field is invalid, or the URL is not allowed.
    """
    changed = receiver.model_copy(update=changes)
    check_receiver(changed, policy)
    if changed == receiver:
        return receiver
    return changed.model_copy(update={"updated_at": int(time.time())})


def rotated(receiver: Receiver, secrets: str, *, overlap_s: float) -> tuple[Receiver, str, str]:
    """Return a receiver with a new secret, that secret, and the value of all that sign now."""
    now_s, secret = time.time(), new_secret()
    changes = {"updated_at": int(now_s), "signing_secret_hint": _hint(secret)}
    dated = rotate_secrets(read_secrets(secrets), secret, overlap_s=overlap_s, now_s=now_s)
    return receiver.model_copy(update=changes), secret, format_secrets(dated)


def check_receiver(receiver: Receiver, policy: TargetPolicy) -> None:
    """Refuse a receiver whose fields are invalid.

    Raises:
        ReceiverRefused: the message names the field.
    """
    name, types = receiver.name, receiver.event_types
    if not (name.isprintable() and 1 <= len(name) <= _MAX_NAME_CHARS):
        raise ReceiverRefused(
            f"name must have 1 to {_MAX_NAME_CHARS} printable characters", param="name"
        )
    unknown = [each for each in types if each not in EVENT_TYPES]
    if unknown or not types or len(set(types)) != len(types):
        said = f"{unknown[0][:60]!r} is not a type of event" if unknown else "wrong"
        raise ReceiverRefused(
            f"event_types: {said}; list some of {', '.join(EVENT_TYPES)}, each once",
            param="event_types",
        )
    if len(receiver.url) > _MAX_URL_CHARS:
        raise ReceiverRefused(f"url has more than {_MAX_URL_CHARS} characters", param="url")
    try:
        read_target(receiver.url, policy)
    except ForbiddenTarget as error:
        raise ReceiverRefused(f"url: {error}", param="url") from None


def load_receivers(tenant: str) -> Read[list[Receiver]]:
    """Read a tenant's receivers, newest first."""

    def parse(replies: list[Any]) -> list[Receiver]:
        found = map(_read, stored(replies[0], default={}).values())
        known = [receiver for receiver in found if receiver is not None]
        return sorted(known, key=lambda each: (-each.created_at, each.id))

    return Read(lambda pipeline: pipeline.hgetall(keys.receivers(tenant)), parse, keeps_errors=True)


def joined_receivers(parts: Iterable[Iterable[Receiver]]) -> list[Receiver]:
    """Return the receivers of a tenant in all shards, newest first, each once.

    They are the same in all shards, unless one was away when they changed: the newest form counts.
    """
    found: dict[str, Receiver] = {}
    for receiver in (each for part in parts for each in part):
        known = found.get(receiver.id)
        if known is None or receiver.updated_at > known.updated_at:
            found[receiver.id] = receiver
    return sorted(found.values(), key=lambda each: (-each.created_at, each.id))


def find_receiver(tenant: str, receiver_id: str) -> Read[tuple[Receiver, str] | None]:
    """Read a receiver of a tenant and the value of its secrets; None if there is none.

    The read raises `UnreadableContent` if the secrets are sealed and cannot be opened.
    """

    def queue(pipeline: Any) -> None:
        pipeline.hget(keys.receivers(tenant), receiver_id)
        pipeline.hget(keys.RECEIVER_SECRETS, receiver_id)

    def parse(replies: list[Any]) -> tuple[Receiver, str] | None:
        receiver = _read(stored(replies[0]))
        return None if receiver is None else (receiver, (stored(replies[1]) or b"").decode())

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        return [replies[0], _opened(cipher, receiver_id, replies[1])]

    return Read(queue, parse, keeps_errors=True, opens=opens)


def create_receiver(tenant: str, receiver: Receiver, secrets: str) -> Call[bool]:
    """Store a new receiver; the call returns False if the tenant has as many as it may have."""
    args = (tenant, receiver.id, receiver.model_dump_json(), _content(receiver.id, secrets))
    return Call("receiver_create", args, lambda reply: bool(reply == 1))


def put_receiver(tenant: str, receiver: Receiver) -> Read[None]:
    """Change a receiver, and leave its secrets as they are."""
    field, value = receiver.id, receiver.model_dump_json()
    return Read(
        lambda pipeline: pipeline.hset(keys.receivers(tenant), field, value), lambda _: None
    )


def put_secrets(tenant: str, receiver: Receiver, secrets: str) -> Call[None]:
    """Change a receiver and the value of its secrets."""
    args = (tenant, receiver.id, receiver.model_dump_json(), _content(receiver.id, secrets))
    return Call("receiver_put_secrets", args, lambda _: None)


def delete_receiver(tenant: str, receiver_id: str) -> Read[None]:
    """Delete a receiver. Events that wait for it become dead letters at their next attempt."""

    def queue(pipeline: Any) -> None:
        pipeline.hdel(keys.receivers(tenant), receiver_id)
        pipeline.hdel(keys.RECEIVER_SECRETS, receiver_id)

    return Read(queue, lambda _: None, is_atomic=True)


def receiver_secrets(receiver_id: str) -> Read[tuple[str, ...]]:
    """Read the secrets that sign for a receiver now; none if it was deleted.

    The read raises `UnreadableContent` if they are sealed and cannot be opened.
    """

    def parse(replies: list[Any]) -> tuple[str, ...]:
        text: bytes = stored(replies[0]) or b""
        return tuple(valid_secrets(text.decode()))

    return Read(
        lambda pipeline: pipeline.hget(keys.RECEIVER_SECRETS, receiver_id),
        parse,
        keeps_errors=True,
        opens=lambda replies, cipher: [_opened(cipher, receiver_id, replies[0])],
    )


def new_secret_value(secret: str) -> str:
    """Return a single secret as the value that is stored."""
    return format_secrets([DatedSecret(secret)])


def _content(receiver_id: str, secrets: str) -> Content:
    return Content(secrets, Place(receiver_id, "secrets"))


def _opened(cipher: Cipher, receiver_id: str, value: Any) -> Any:
    """Return the value of secrets, opened; the error of a read is returned as it is."""
    is_value = isinstance(value, bytes)
    return cipher.open(value, Place(receiver_id, "secrets")) if is_value else value


def _hint(secret: str) -> str:
    return f"whsec_…{secret[-_SHOWN_CHARS:]}"


def _read(text: bytes | None) -> Receiver | None:
    """Return a receiver; None if there is none, or batchmill did not write it."""
    try:
        return None if text is None else Receiver.model_validate_json(text)
    except ValidationError:
        return None
