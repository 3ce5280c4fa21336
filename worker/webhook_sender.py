"""Send one webhook attempt over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit

import httpx2

#: Bytes of an answer's body that are read. Nobody uses them; some receivers reset the connection
#: when their answer is not taken.
MAX_RESPONSE_BYTES = 16 * 1024
_DRAIN_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What came of one attempt: an HTTP status, or the reason why there is none."""

    #: HTTP status code; None where no complete answer head arrived.
    status: int | None
    #: `connect`, `timeout`, `protocol` or `refused` (we do not send there); None with a status.
    error: str | None = None
    #: Seconds the receiver asked to be left alone.
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        """True for a 2xx answer; a redirect is a failure."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def disables(self) -> bool:
        """True where trying again is pointless: the receiver said Gone, or we must not send."""
        return self.status == 410 or self.error == "refused"

    @property
    def reason(self) -> str:
        """One word for logs and dead letters, such as `http_500` or `timeout`."""
        return f"http_{self.status}" if self.error is None else self.error


class WebhookSender:
    """Posts bytes to a URL, and reports how it went. Never raises for a receiver's behaviour.

    Only the URL's scheme is checked here. Addresses are not: run the deliverer where it can reach
    no more than your receivers should be, or behind an egress proxy.

    No redirects, no proxies or credentials from the environment, no cookies, no connection reuse
    (a receiver may have closed an idle connection, which would look like a failed attempt).
    """

    def __init__(
        self, *, connect_timeout_s: float, total_timeout_s: float, allow_http: bool, user_agent: str
    ) -> None:
        self._total_timeout_s = total_timeout_s
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._user_agent = user_agent
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(total_timeout_s, connect=connect_timeout_s),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=())),
        )

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> SendOutcome:
        """Make one attempt, within the total time limit.

        Args:
            url: absolute URL of the receiver.
            body: JSON, sent as it is.
            headers: the signature headers.
        """
        try:
            if urlsplit(url).scheme not in self._schemes:
                return SendOutcome(None, error="refused")
            async with asyncio.timeout(self._total_timeout_s):
                return await self._post(url, body, headers)
        except (TimeoutError, httpx2.TimeoutException):
            return SendOutcome(None, error="timeout")
        except (httpx2.ConnectError, OSError):
            return SendOutcome(None, error="connect")
        except httpx2.HTTPError:
            return SendOutcome(None, error="protocol")
        except (httpx2.InvalidURL, ValueError):  # no receiver can ever be at such a URL
            return SendOutcome(None, error="refused")

    async def close(self) -> None:
        """Close what is still open."""
        await self._client.aclose()

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> SendOutcome:
        own = {
            "content-type": "application/json",
            "user-agent": self._user_agent,
            "connection": "close",
        }
        # Without accept-encoding the client would ask for compression, and inflate what it gets.
        own["accept-encoding"] = "identity"
        async with self._client.stream(
            "POST", url, content=body, headers=own | dict(headers)
        ) as answer:
            await _drain(answer)
            return SendOutcome(answer.status_code, retry_after_s=_retry_after_s(answer.headers))


async def _drain(answer: httpx2.Response) -> None:
    """Take what the receiver answers, within limits. The status stands whatever becomes of it."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_DRAIN_TIMEOUT_S):
            async for chunk in answer.aiter_raw():
                num_bytes += len(chunk)
                if num_bytes >= MAX_RESPONSE_BYTES:
                    return


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After, as seconds or as a date; nonsense counts as absent."""
    value = headers.get("retry-after", "").strip()
    try:
        if value.isascii() and value.isdigit():
            return float(value[:12])
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp() - datetime.now(UTC).timestamp()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def unix_timestamp() -> int:
    """Seconds since the epoch, the time of an attempt."""
    return int(time.time())
