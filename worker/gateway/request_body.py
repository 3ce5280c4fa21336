"""Reading the body of a request within limits on bytes and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.strict_json import read_strict_json

from .api_errors import ApiError, invalid
from .settings import GatewaySettings

Value = TypeVar("Value")
#: A body may take one more second for each of these.
_BYTES_PER_S = 16 << 10


async def body_chunks(
    request: Request, settings: GatewaySettings, max_bytes: int
) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Only the time that the client lets us wait counts.

    Raises:
        ApiError: it is too long (413), or the client is too slow (408).
        ClientDisconnect: the client is gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_long(max_bytes)
    num_bytes, waited_s, more = 0, 0.0, True
    while more:
        allowed_s = settings.gateway_body_timeout_s + num_bytes / _BYTES_PER_S - waited_s
        began = time.monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), max(allowed_s, 0.001))
        except TimeoutError:
            raise ApiError(
                408,
                f"the body of the request took too long: {num_bytes} bytes arrived in "
                f"{settings.gateway_body_timeout_s:g} s; send it faster, or raise "
                "BATCHMILL_GATEWAY_BODY_TIMEOUT_S",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None
        waited_s += time.monotonic() - began
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_long(max_bytes)
        if chunk:
            yield chunk


async def read_json(request: Request, settings: GatewaySettings) -> dict[str, Any]:
    """Return the JSON object in the body.

    Raises:
        ApiError: the body is not one, is too long or comes too slowly.
    """
    return await read_request(request, settings, lambda body: body)


async def read_request(
    request: Request, settings: GatewaySettings, read: Callable[[dict[str, Any]], Value]
) -> Value:
    """Return what a function makes of the JSON object in the body; of a large one on a thread.

    Raises:
        ApiError: as `read_json`, or the function refuses it.
    """
    content = bytearray()
    async for chunk in body_chunks(request, settings, settings.gateway_max_body_bytes):
        content += chunk
    if len(content) > _BYTES_PER_S:  # it would hold up the other requests
        return await asyncio.to_thread(_parse, bytes(content), read)
    return _parse(bytes(content), read)


def _parse(content: bytes, read: Callable[[dict[str, Any]], Value]) -> Value:
    try:
        value = read_strict_json(content)
    except JobRejected as error:
        raise invalid(str(error), code=error.code) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not JSON: {reason}", code="not_json") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", code="not_json")
    return read(value)


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body of the request has more than {max_bytes} bytes, the limit; send less, or raise "
        "the limit of the gateway",
        code="request_too_large",
        headers={"connection": "close"},
    )
