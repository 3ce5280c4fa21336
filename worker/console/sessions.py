"""Sessions: a random cookie stands for an API key that has signed in.

They are kept in Redis, so that any gateway serves them, and a revoked key ends them at once. Redis
has the SHA-256 of the cookie only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import stored
from batchmill.producer.store.api_keys import digest, find_api_key, find_api_key_by_digest
from batchmill.producer.store.job_store import JobStore

from .viewer import Viewer, may_sign_in

COOKIE = "batchmill_console"


def sign_in(store: JobStore, secret: str, *, ttl_s: int) -> str | None:
    """Return the cookie of a new session; None if no valid key has this secret.

    Args:
        store: the job store.
        secret: of an API key.
        ttl_s: seconds until the session ends.
    """
    key, _ = store.read(find_api_key(secret))
    if key is None or not may_sign_in(key):
        return None
    cookie = secrets.token_urlsafe(32)
    place = keys.console_session(_hash(cookie))
    with store.client.pipeline(transaction=True) as pipeline:
        pipeline.hset(place, mapping={"key": digest(secret), "form": secrets.token_urlsafe(32)})
        pipeline.expire(place, ttl_s)
        pipeline.execute()
    return cookie


def find_viewer(store: JobStore, cookie: str) -> tuple[Viewer | None, bool]:
    """Return who a cookie stands for, None if its session has ended; and whether keys exist."""
    with store.client.pipeline(transaction=False) as pipeline:
        pipeline.hmget(keys.console_session(_hash(cookie)), "key", "form")
        (fields,) = pipeline.execute(raise_on_error=False)
    key_digest, form_token = (
        (value or b"").decode(errors="replace") for value in stored(fields, (None, None))
    )
    key, has_keys = store.read(find_api_key_by_digest(key_digest))
    if key is None or not form_token or not may_sign_in(key):
        return None, has_keys
    return Viewer(key, form_token), has_keys


def sign_out(store: JobStore, cookie: str) -> None:
    """End a session."""
    store.client.delete(keys.console_session(_hash(cookie)))


def is_form_token(viewer: Viewer, given: str) -> bool:
    """Return whether a form carries the token of its session."""
    return hmac.compare_digest(viewer.form_token.encode(), given.encode(errors="replace"))


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
