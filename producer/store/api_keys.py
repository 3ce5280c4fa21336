"""API keys of the gateway: a secret stands for a tenant, with rights and limits.

Only the SHA-256 of a secret is kept. A revoked key stays in the list, so that a gateway that once
had keys never becomes open again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchmill.producer.errors import ApiKeyRefused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored

from .every_shard import EveryShard
from .job_store import JobStore

Scope = Literal["submit", "read", "texts", "admin", "operator"]
PriorityClass = Literal["high", "normal", "low"]
#: `texts` shows prompts and outputs in the console. `admin` includes the rights before it, for its
#: tenant; `operator` is about all tenants, and includes no other right.
SCOPES: tuple[Scope, ...] = ("submit", "read", "texts", "admin", "operator")
_SECRET_PREFIX = "sk-bm-"
#: Characters of a secret that are kept, to recognize it in a list.
_SHOWN_CHARS = 10
#: Of a given secret: as long as those that are made here.
_MIN_SECRET_CHARS = 40
_MAX_NAME_CHARS = 100
_MAX_LIMIT = 2**40


class ApiKey(BaseModel):
    """What a secret stands for."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    #: The operator's own name for it.
    name: str
    #: The beginning of the secret.
    prefix: str = ""
    tenant: str = keys.DEFAULT_TENANT
    scopes: tuple[Scope, ...] = ("submit", "read")
    #: Models that it may use; empty for all.
    models: tuple[str, ...] = ()
    #: The highest class of its jobs.
    highest_class: PriorityClass = "high"
    requests_per_minute: int | None = Field(default=None, ge=1, le=_MAX_LIMIT)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=_MAX_LIMIT)
    created_at_ms: int = 0
    #: Since when it is refused; None if it is valid.
    revoked_at_ms: int | None = None

    def has_scope(self, scope: Scope) -> bool:
        """Return whether the key has a right, directly or as an admin."""
        return scope in self.scopes or ("admin" in self.scopes and scope != "operator")

    def may_use_model(self, model: str) -> bool:
        """Return whether the key may use a model."""
        return not self.models or model in self.models


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret, hex. The secret has 256 random bits, so no salt is needed."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def create_api_key(store: JobStore, name: str, **fields: Any) -> tuple[ApiKey, str]:
    """Make and store a new key; arguments, value and errors as of `make_api_key`."""
    key, secret = make_api_key(name, **fields)
    put_api_key(store, key, secret)
    return key, secret


def put_api_key(store: JobStore, key: ApiKey, secret: str) -> None:
    """Store a key under its secret, of which the digest is kept."""
    store.client.hset(keys.API_KEYS, digest(secret), key.model_dump_json())


def make_api_key(name: str, **fields: Any) -> tuple[ApiKey, str]:
    """Return a new key with its secret, which is kept nowhere; `put_api_key` stores it.

    Args:
        name: the operator's own name for it.
        **fields: further fields of `ApiKey`.

    Raises:
        ApiKeyRefused: the name, the tenant, a model or a limit is invalid.
    """
    if not (name.isprintable() and 1 <= len(name) <= _MAX_NAME_CHARS):
        raise ApiKeyRefused(f"name must have 1 to {_MAX_NAME_CHARS} printable characters")
    tenant = fields.get("tenant", keys.DEFAULT_TENANT)
    if not keys.is_tenant_name(tenant):
        raise ApiKeyRefused(
            f"tenant is {tenant[:80]!r}; it must be 1 to 64 letters, digits, _ . and -"
        )
    for model in fields.get("models", ()):
        if not keys.is_model_name(model):
            raise ApiKeyRefused(f"model is {model[:80]!r}, which is not a served model's name")
    secret = _SECRET_PREFIX + secrets.token_urlsafe(32)
    try:
        key = ApiKey.model_validate(
            {
                **fields,
                "id": f"key_{secrets.token_hex(8)}",
                "name": name,
                "prefix": secret[:_SHOWN_CHARS],
                "created_at_ms": time.time_ns() // 1_000_000,
            }
        )
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ApiKeyRefused(f"{where}: {problem['msg']}") from None
    return key, secret


def store_given_key(store: JobStore, secret: str) -> None:
    """Store the key of a secret that the operator has made, as an admin of the default tenant.

    Nothing changes if it exists, so that a revoked key stays revoked.

    Raises:
        ApiKeyRefused: the secret could be guessed.
    """
    if not secret.startswith(_SECRET_PREFIX) or len(secret) < _MIN_SECRET_CHARS:
        raise ApiKeyRefused(
            f"the API key of the settings must be {_SECRET_PREFIX} and random characters, "
            f"{_MIN_SECRET_CHARS} in all"
        )
    field = digest(secret)
    key = ApiKey(
        id=f"key_{field[:16]}",
        name="of the settings",
        prefix=secret[:_SHOWN_CHARS],
        scopes=("admin",),
        created_at_ms=time.time_ns() // 1_000_000,
    )
    store.client.hsetnx(keys.API_KEYS, field, key.model_dump_json())


def list_api_keys(store: JobStore) -> list[ApiKey]:
    """Return all keys, the revoked ones included, oldest first."""
    return sorted(_load(store).values(), key=lambda key: (key.created_at_ms, key.id))


def joined_api_keys(parts: Mapping[str, Sequence[ApiKey]]) -> list[tuple[ApiKey, list[str]]]:
    """Return the keys of all shards, oldest first, each with the shards where it is another.

    Args:
        parts: the keys of each shard, by its name. All shards have the same keys, unless one was
            away when they changed. A key that is revoked in one of them is returned as revoked.
    """
    by_shard = {name: {key.id: key for key in part} for name, part in parts.items()}
    found: dict[str, ApiKey] = {}
    for key in (each for part in parts.values() for each in part):
        if _prevails(key, found.get(key.id)):
            found[key.id] = key
    in_order = sorted(found.values(), key=lambda key: (key.created_at_ms, key.id))
    return [
        (
            key,
            [name for name, ids in by_shard.items() if not _is_same(ids.get(key.id), key)],
        )
        for key in in_order
    ]


def level_api_keys(shards: EveryShard) -> int:
    """Give each shard the keys that it lacks, and revoke in all what is revoked in one.

    A shard that was away when a key was made or revoked gets the change so. Keys are never deleted,
    and a revoked one is never made valid, so this may be done at any time and by several programs.

    Returns:
        How many keys were changed in shards.
    """
    parts = shards.each(lambda store: (store, _load(store)))
    level: dict[str, ApiKey] = {}
    for field, key in (item for _, part in parts for item in part.items()):
        if _prevails(key, level.get(field)):
            level[field] = key
    num_changed = 0
    for store, part in parts:
        changed = {field: key for field, key in level.items() if not _is_same(part.get(field), key)}
        if changed:
            _write(store, changed)
        num_changed += len(changed)
    return num_changed


def _prevails(key: ApiKey, known: ApiKey | None) -> bool:
    """Return whether a key replaces what is known of it: a revoked one does, a valid one never."""
    return known is None or (known.revoked_at_ms is None and key.revoked_at_ms is not None)


def _is_same(key: ApiKey | None, other: ApiKey) -> bool:
    """Return whether two shards agree on a key; they may have revoked it at different times."""
    return key is not None and (key.revoked_at_ms is None) == (other.revoked_at_ms is None)


def revoke_api_key(store: JobStore, key_id: str) -> ApiKey | None:
    """Refuse a key from now on. Return it, or None if there is none with this id."""
    found = _find(store, key_id)
    return None if found is None else _revoke(store, *found)


def revoke_in_every_shard(shards: EveryShard, key_id: str) -> list[tuple[str, ApiKey]]:
    """Refuse a key from now on, also in shards that lack it, which may be given it at any moment.

    Returns:
        The key in each shard that replied, with the shard's name; empty if none has it.
    """
    found = [each for each in shards.each(lambda store: _find(store, key_id)) if each is not None]
    if not found:
        return []
    field, key = found[0]
    return shards.named(lambda store: _revoke(store, field, key))


def _find(store: JobStore, key_id: str) -> tuple[str, ApiKey] | None:
    """Return the digest and the key of an id."""
    return next(((field, key) for field, key in _load(store).items() if key.id == key_id), None)


def _revoke(store: JobStore, field: str, key: ApiKey) -> ApiKey:
    """Store a key as revoked, and return it; one that is revoked already stays as it is."""
    stored_key = store.read(look_up_api_key_by_digest(field)).key
    if stored_key is not None and stored_key.revoked_at_ms is not None:
        return stored_key
    now_ms = time.time_ns() // 1_000_000
    key = key.model_copy(update={"revoked_at_ms": key.revoked_at_ms or now_ms})
    store.client.hset(keys.API_KEYS, field, key.model_dump_json())
    return key


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What a broker knows about a secret."""

    #: Its key, also a revoked one; None if the secret is unknown.
    key: ApiKey | None
    #: Whether there is any key at all.
    has_keys: bool

    @property
    def valid_key(self) -> ApiKey | None:
        """The key, if it is not revoked."""
        return self.key if self.key is not None and self.key.revoked_at_ms is None else None


def look_up_api_key(secret: str) -> Read[KnownKey]:
    """Read what a broker knows about a secret."""
    return look_up_api_key_by_digest(digest(secret))


def look_up_api_key_by_digest(secret_digest: str) -> Read[KnownKey]:
    """Read what a broker knows about a secret, by its SHA-256."""

    def queue(pipeline: Any) -> None:
        pipeline.hget(keys.API_KEYS, secret_digest)
        pipeline.hlen(keys.API_KEYS)

    def parse(replies: Sequence[Any]) -> KnownKey:
        return KnownKey(None if replies[0] is None else _read(replies[0]), replies[1] > 0)

    return Read(queue, parse)


def _write(store: JobStore, changed: Mapping[str, ApiKey]) -> None:
    """Store keys by their digests; a valid one replaces nothing, which may have been revoked."""
    with store.client.pipeline(transaction=False) as pipeline:
        for field, key in changed.items():
            write = pipeline.hset if key.revoked_at_ms is not None else pipeline.hsetnx
            write(keys.API_KEYS, field, key.model_dump_json())
        pipeline.execute()


def _load(store: JobStore) -> dict[str, ApiKey]:
    with store.client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(keys.API_KEYS)
        (fields,) = pipeline.execute(raise_on_error=False)
    found = {name.decode(): _read(text) for name, text in stored(fields, default={}).items()}
    return {name: key for name, key in found.items() if key is not None}


def _read(text: bytes) -> ApiKey | None:
    """Return a key; None if batchmill did not write it, which counts as missing."""
    try:
        return ApiKey.model_validate_json(text)
    except ValidationError:
        return None
