"""Who sends a request: its API key, the tenant and the rights, and the limits per minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from starlette.requests import Request

from batchmill.producer.errors import BrokerUnavailable
from batchmill.producer.protocol.calls import rates
from batchmill.producer.protocol.calls.rates import RateReply
from batchmill.producer.store.api_keys import ApiKey, KnownKey, Scope, look_up_api_key
from batchmill.producer.store.async_store import AsyncStore

from .api_errors import DO_NOT_RETRY, ApiError
from .backend import Backend
from .middleware import is_anthropic
from .settings import GatewaySettings, is_loopback

_CLASSES = ("high", "normal", "low")
#: Whoever sends a request to a gateway without keys.
_OPEN = ApiKey(id="", name="no key", scopes=("admin", "operator"))


async def identify(request: Request, backend: Backend) -> ApiKey:
    """Return the key of a request.

    Raises:
        ApiError: there is no valid key (401), or an open gateway must not take the request (403).
    """
    secret = _secret(request)
    key, has_keys = await _find_key(backend, secret)
    if key is not None:
        return key
    return open_key(request, backend.settings, has_keys=has_keys, secret=secret)


async def _find_key(backend: Backend, secret: str) -> tuple[ApiKey | None, bool]:
    """Return the valid key of a secret, and whether there is any key.

    Every shard has all keys, so the first that knows the secret decides. One that does not know it
    may have been added or away: the others are asked as well.

    Raises:
        BrokerUnavailable: no shard replied that knows it, and another may.
    """
    has_keys = False

    async def look(store: AsyncStore) -> KnownKey | None:
        nonlocal has_keys
        known = await store.read(look_up_api_key(secret))
        has_keys = has_keys or known.has_keys
        return known if known.key is not None else None

    known, away = await backend.shards.first(look)
    if known is not None:
        return known.valid_key, True
    if away:
        raise BrokerUnavailable(
            f"shard {', '.join(away)} does not reply, and no other shard knows this API key"
        ).of_shards(away)
    return None, has_keys


def open_key(
    request: Request, settings: GatewaySettings, *, has_keys: bool, secret: str = ""
) -> ApiKey:
    """Return the key that stands for every caller of a gateway without keys.

    Such a gateway is open to this machine. A web page in a browser of this machine could reach it
    as well, so then the request must name this machine and no foreign origin.

    Args:
        request: of the caller.
        settings: of the gateway.
        has_keys: whether there is any key, also a revoked one.
        secret: that the caller sent, which is not that of a valid key.

    Raises:
        ApiError: the gateway is not open (401), or must not take the request (403).
    """
    if has_keys or not settings.is_loopback:
        problem = "the API key is unknown or revoked" if secret else "the request has no API key"
        raise ApiError(
            401,
            f"{problem}; send one as `Authorization: Bearer` or `x-api-key` (`batchmill keys "
            "create` makes one)",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if not is_loopback(_name(host)) or (origin and not is_loopback(_name(origin.split("//")[-1]))):
        raise ApiError(
            403,
            "a gateway without API keys serves this machine only, and no web page of another "
            "site; make a key with: batchmill keys create NAME",
            code="foreign_origin",
        )
    return _OPEN


def require_scope(key: ApiKey, scope: Scope) -> None:
    """Refuse a key without a right.

    Raises:
        ApiError: the key does not have it.
    """
    if not key.has_scope(scope):
        raise ApiError(
            403,
            f"this API key has the rights {', '.join(key.scopes)}, and the request needs {scope}",
            code="insufficient_permissions",
        )


def check_model(key: ApiKey, model: str) -> None:
    """Refuse a model that a key may not use, as if it did not exist.

    Raises:
        ApiError: the key may not use it.
    """
    if not key.may_use_model(model):
        raise unknown_model(model, key.models)


def unknown_model(model: str, served: Sequence[str]) -> ApiError:
    """Return the error for a model that nobody serves."""
    known = ", ".join(served[:20]) or "none at the moment"
    return ApiError(
        404,
        f"The model {model[:200]!r} does not exist or you do not have access to it; there are: "
        f"{known}",
        code="model_not_found",
        param="model",
    )


def check_class(key: ApiKey, priority: str, param: str) -> None:
    """Refuse a class above the highest one of a key.

    Raises:
        ApiError: it is above.
    """
    if priority in _CLASSES and _CLASSES.index(priority) < _CLASSES.index(key.highest_class):
        raise ApiError(
            403,
            f"{param} asks for the class {priority}, and the highest one of this API key is "
            f"{key.highest_class}",
            code="class_not_allowed",
            param=param,
        )


async def take_rate(request: Request, backend: Backend, key: ApiKey, num_tokens: int) -> None:
    """Take a request and its tokens from the key's limits, and note the headers that tell of them.

    Raises:
        ApiError: a limit is reached (429).
    """
    requests, tokens = key.requests_per_minute, key.tokens_per_minute
    if requests is None and tokens is None:
        return
    if tokens is not None and num_tokens > tokens:
        raise ApiError(
            429,
            f"the request may need {num_tokens} tokens, prompt and output, and the limit of this "
            f"API key is {tokens} per minute; ask for fewer",
            code="rate_limit_exceeded",
            headers=DO_NOT_RETRY,
        )
    call = rates.take(key.id, requests, tokens, num_tokens)
    # Counted in one shard; while it is away, in the next one from the start.
    reply, _ = await backend.shards.first(lambda store: store.run_confirmed(call), key=key.id)
    assert reply is not None  # a script has a reply
    headers = anthropic_rate_headers if is_anthropic(request) else openai_rate_headers
    request.state.headers |= headers(key, reply)
    if not reply.is_allowed:
        wait_s = max(1, -(-reply.wait_ms // 1000))
        raise ApiError(
            429,
            f"the limit of this API key is reached ({requests or 'any number of'} requests and "
            f"{tokens or 'any number of'} tokens per minute); try again in {wait_s} s",
            code="rate_limit_exceeded",
            headers={"retry-after": str(wait_s), "retry-after-ms": str(max(1, reply.wait_ms))},
        )


def openai_rate_headers(key: ApiKey, reply: RateReply) -> dict[str, str]:
    """Return OpenAI's headers on the limits of a key."""
    headers = {}
    for name, limit, left, reset_ms in _limits(key, reply):
        headers[f"x-ratelimit-limit-{name}"] = str(limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(left)
        headers[f"x-ratelimit-reset-{name}"] = f"{reset_ms / 1000:g}s"
    return headers


def anthropic_rate_headers(key: ApiKey, reply: RateReply) -> dict[str, str]:
    """Return Anthropic's headers on the limits of a key; it writes the end of a wait as a time."""
    headers = {}
    now = datetime.now(UTC)
    for name, limit, left, reset_ms in _limits(key, reply):
        reset = (now + timedelta(milliseconds=reset_ms)).isoformat(timespec="seconds")
        start = f"anthropic-ratelimit-{name}"
        headers[f"{start}-limit"] = str(limit)
        headers[f"{start}-remaining"] = str(left)
        headers[f"{start}-reset"] = reset.replace("+00:00", "Z")
    return headers


def _limits(key: ApiKey, reply: RateReply) -> Iterator[tuple[str, int, int | None, int]]:
    """Yield the limits that a key has, with what is left and when all of it is back."""
    if key.requests_per_minute is not None:
        limit = key.requests_per_minute
        yield "requests", limit, reply.requests_left, reply.requests_reset_ms
    if key.tokens_per_minute is not None:
        yield "tokens", key.tokens_per_minute, reply.tokens_left, reply.tokens_reset_ms


def _secret(request: Request) -> str:
    """Return the secret of a request in OpenAI's or Anthropic's header; empty without one."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret:
        return str(secret).strip()
    return str(request.headers.get("x-api-key", "")).strip()


def _name(host: str) -> str:
    """Return the host of `host:port`; an IPv6 address keeps its brackets."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host
