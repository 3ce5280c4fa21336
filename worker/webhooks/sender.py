"""One attempt to send a webhook over HTTP, and its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import h11

from batchmill.producer.webhook.target import ForbiddenTarget, Target, TargetPolicy, read_target
from batchmill.worker.outbound.http_exchange import HeadTooLong, HttpExchange, NoResponse
from batchmill.worker.outbound.pinned_connection import LookUp, LookUpFailed, PinnedConnector

from .settings import WebhookSettings

#: Seconds for reading the rest of a response whose status is known.
_DISCARD_TIMEOUT_S = 2.0
#: Errors that say nothing about the receiver: a bug, and a secret that is not configured.
OWN_FAULTS = ("internal", "unknown_secret")


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """The outcome of one attempt: an HTTP status, or the reason why there is none."""

    #: HTTP status code; None if no complete response head arrived.
    status: int | None
    #: `look_up`, `connect`, `tls`, `timeout`, `no_response`, `protocol`, `head_too_long`, or why
    #: sending there is refused: `refused_url`, `refused_scheme`, `refused_port`, `refused_address`,
    #: or `refused_receiver`, if the receiver was deleted.
    #: None with a status. `reasons.py` says each in words.
    error: str | None = None
    #: Seconds that the receiver asked us to wait.
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        """Whether the response was 2xx; a redirect is a failure."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def disables(self) -> bool:
        """Whether a retry is pointless: the receiver said Gone, or sending there is refused."""
        return self.status == 410 or (self.error or "").startswith("refused_")

    @property
    def is_busy(self) -> bool:
        """Whether the receiver is overloaded or out of reach: a quick retry would make it worse."""
        return self.status in (429, 502, 504) or self.error == "timeout"

    @property
    def hold_s(self) -> float:
        """Seconds for which the receiver wants no events at all: it is overloaded and says so."""
        return self.retry_after_s or 0.0 if self.status in (429, 503) else 0.0

    @property
    def is_receiver_fault(self) -> bool:
        """Whether the attempt failed at the receiver, not because of our own rules or errors."""
        return not self.delivered and self.error not in OWN_FAULTS and not self.disables

    @property
    def reason(self) -> str:
        """One word for logs and dead letters, such as `http_500` or `timeout`."""
        return f"http_{self.status}" if self.error is None else self.error


class WebhookSender:
    """Posts bytes to a URL, and reports the outcome. Never raises for a receiver's behaviour.

    The policy decides which targets are allowed: the URL is checked again at every attempt, its
    name is looked up once, and the connection goes to an address that was checked. No redirects,
    no proxies or credentials from the environment, no cookies, no decompression, and no connection
    reuse (a receiver may have closed an idle connection, which would look like a failed attempt).
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        total_timeout_s: float,
        policy: TargetPolicy,
        user_agent: str,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind to limits and a policy; see `PinnedConnector` for `look_up` and `tls`."""
        self._total_timeout_s = total_timeout_s
        self._policy = policy
        self._user_agent = user_agent
        self._connector = PinnedConnector(
            policy, timeout_s=connect_timeout_s, look_up=look_up, tls=tls
        )

    @classmethod
    def from_settings(cls, settings: WebhookSettings) -> WebhookSender:
        """Return a sender with the operator's limits and rules."""
        return cls(
            connect_timeout_s=settings.webhook_connect_timeout_s,
            total_timeout_s=settings.webhook_total_timeout_s,
            policy=settings.target_policy,
            user_agent=f"batchmill/{_version()}",
        )

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> SendOutcome:
        """Make one attempt, within the total time limit.

        Args:
            url: absolute URL of the receiver.
            body: JSON, sent as it is.
            headers: the signature headers, names in lower case.
        """
        deadline_s = asyncio.get_running_loop().time() + self._total_timeout_s
        try:
            target = read_target(url, self._policy)
            async with asyncio.timeout_at(deadline_s):
                reader, writer = await self._connector.connect(target)
            return await self._post(HttpExchange(reader, writer), target, body, headers, deadline_s)
        except ForbiddenTarget as error:
            return SendOutcome(None, error=error.reason)
        except TimeoutError:
            return SendOutcome(None, error="timeout")
        except LookUpFailed:
            return SendOutcome(None, error="look_up")
        except ssl.SSLError:
            return SendOutcome(None, error="tls")
        except NoResponse:
            return SendOutcome(None, error="no_response")
        except OSError:
            return SendOutcome(None, error="connect")
        except HeadTooLong:
            return SendOutcome(None, error="head_too_long")
        except h11.ProtocolError:
            return SendOutcome(None, error="protocol")

    async def _post(
        self,
        exchange: HttpExchange,
        target: Target,
        body: bytes,
        headers: Mapping[str, str],
        deadline_s: float,
    ) -> SendOutcome:
        own = {
            "host": target.host_header,
            "user-agent": self._user_agent,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept-encoding": "identity",
            "connection": "close",
        }
        try:
            async with asyncio.timeout_at(deadline_s):
                await exchange.request(target.path, own | dict(headers), body)
                status, response_headers = await exchange.read_response_head()
            # The status counts even if the rest fails.
            discard_by_s = asyncio.get_running_loop().time() + _DISCARD_TIMEOUT_S
            with contextlib.suppress(TimeoutError, OSError, h11.ProtocolError):
                async with asyncio.timeout_at(min(deadline_s, discard_by_s)):
                    await exchange.discard_body()
            return SendOutcome(status, retry_after_s=_retry_after_s(response_headers))
        finally:
            exchange.close()


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, in seconds or as a date; None if invalid."""
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


def _version() -> str:
    try:
        return version("batchmill")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
