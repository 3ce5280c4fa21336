"""Sessions: a random cookie stands for an API key that has signed in.

They are kept in Redis, so that any gateway serves them, and a revoked key ends them at once. Redis
has the SHA-256 of the cookie only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from redis.exceptions import RedisError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import stored
from batchmill.producer.store.api_keys import KnownKey, digest, look_up_api_key_by_digest
from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.job_store import JobStore

from .viewer import Viewer, may_sign_in

#: Between the random part of a cookie and the shard of its session; not in either of them.
_SHARD_MARK = "."
COOKIE = "batchmill_console"


def sign_in(stores: JobStores, secret: str, *, ttl_s: int) -> str | None:
    """Return the cookie of a new session; None if no valid key has this secret.

    Args:
        stores: of all shards. A session is in one of them, which its cookie names; while that one
            is away, people sign in again.
        secret: of an API key.
        ttl_s: seconds until the session ends.
    """
    found = stores.look().find(lambda store: _known(store, digest(secret)))
    key = None if found is None else found[1].valid_key
    if found is None or key is None or not may_sign_in(key):
        return None
    store, _ = found
    shard = stores.shards.shard_of(store)
    cookie = secrets.token_urlsafe(32) + (f"{_SHARD_MARK}{shard.name}" if shard.name else "")
    place = keys.console_session(_hash(cookie))
    with store.client.pipeline(transaction=True) as pipeline:
        pipeline.hset(place, mapping={"key": digest(secret), "form": secrets.token_urlsafe(32)})
        pipeline.expire(place, ttl_s)
        pipeline.execute()
    return cookie


def find_viewer(stores: JobStores, cookie: str) -> tuple[Viewer | None, bool]:
    """Return who a cookie stands for, None if its session has ended; and whether keys exist.

    Raises:
        redis.exceptions.RedisError: no shard replies that knows the key, and another may.
    """
    store = _store_of(stores, cookie)
    if store is None:
        return None, _has_keys(stores)
    try:
        key_digest, form_token = _session(store, cookie)
    except RedisError:
        if stores.shards.list.only is not None:
            raise
        return None, True  # its shard is away: another sign-in leads to another one
    if not form_token:
        return None, _has_keys(stores)
    found = stores.look().find(lambda each: _known(each, key_digest))
    key = None if found is None else found[1].valid_key
    if key is None or not may_sign_in(key):
        return None, found is not None or _has_keys(stores)
    return Viewer(key, form_token), True


def _store_of(stores: JobStores, cookie: str) -> JobStore | None:
    """Return the store of a cookie's session; None if it names none of the shards."""
    name = cookie.rpartition(_SHARD_MARK)[2] if _SHARD_MARK in cookie else ""
    try:
        return stores.at(name)
    except ValueError:
        return None


def _session(store: JobStore, cookie: str) -> tuple[str, str]:
    """Return the digest of the key of a session and the token of its forms; empty if it ended."""
    with store.client.pipeline(transaction=False) as pipeline:
        pipeline.hmget(keys.console_session(_hash(cookie)), "key", "form")
        (fields,) = pipeline.execute(raise_on_error=False)
    key_digest, form_token = (
        (value or b"").decode(errors="replace") for value in stored(fields, (None, None))
    )
    return key_digest, form_token


def _known(store: JobStore, key_digest: str) -> KnownKey | None:
    known = store.read(look_up_api_key_by_digest(key_digest))
    return None if known.key is None else known


def _has_keys(stores: JobStores) -> bool:
    """Return whether any shard has keys. One that is away may have some."""
    found = stores.look().find(lambda store: bool(store.client.exists(keys.API_KEYS)) or None)
    return found is not None


def sign_out(stores: JobStores, cookie: str) -> None:
    """End a session."""
    store = _store_of(stores, cookie)
    if store is not None:
        store.client.delete(keys.console_session(_hash(cookie)))


def is_form_token(viewer: Viewer, given: str) -> bool:
    """Return whether a form carries the token of its session."""
    return hmac.compare_digest(viewer.form_token.encode(), given.encode(errors="replace"))


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
