"""`MediaFetcher`: gets a picture or a sound from a URL, behind the address guard of webhooks."""

from __future__ import annotations

import asyncio
import ssl

import h11

from batchmill.producer.webhook.target import ForbiddenTarget, Target, TargetPolicy, read_target
from batchmill.worker.outbound.http_exchange import BodyTooLong, HttpExchange, NoResponse
from batchmill.worker.outbound.pinned_connection import LookUp, LookUpFailed, PinnedConnector

from .errors import REFUSED, TOO_LARGE, UNREACHABLE, MediaError

#: Below 500, these alone may be followed by another response to the same request.
_TEMPORARY_STATUS = (408, 429)
_USER_AGENT = "batchmill"


class MediaFetcher:
    """Sends one GET to an address that was checked. Thread-safe.

    No redirects, no proxies or credentials from the environment, no cookies, no decompression. A
    message names no URL: it may hold a signature that grants access.
    """

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        timeout_s: float,
        max_bytes: int,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind to limits and a policy; see `PinnedConnector` for `look_up` and `tls`.

        Args:
            policy: which servers may be reached.
            timeout_s: for everything, from the look-up to the last byte.
            max_bytes: of the body.
            look_up: None takes the system's resolver.
            tls: None takes the system's certificate authorities.
        """
        self._policy = policy
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._connector = PinnedConnector(policy, timeout_s=timeout_s, look_up=look_up, tls=tls)

    def fetch(self, url: str) -> bytes:
        """Return the bytes behind a URL. Blocks, at most for the limit of time.

        Raises:
            MediaError: `media_refused` and `media_too_large` are final; `media_unreachable` is not.
        """
        try:
            return asyncio.run(self._fetch(url))
        except ForbiddenTarget as error:
            raise MediaError(REFUSED, f"a URL is not fetched: {error}") from None
        except TimeoutError:
            raise _unreachable(f"took more than {self._timeout_s:g} s") from None
        except LookUpFailed:
            raise _unreachable("has a name without an address") from None
        except ssl.SSLError:
            raise _unreachable("has no valid certificate, or speaks no TLS") from None
        except NoResponse:
            raise _unreachable("closed the connection before the end of its response") from None
        except OSError:
            raise _unreachable("does not accept connections") from None
        except h11.ProtocolError:
            raise _unreachable("does not speak HTTP/1.1") from None
        except BodyTooLong:
            raise MediaError(
                TOO_LARGE,
                f"what a URL leads to has more than {self._max_bytes} bytes, the limit: use a "
                "smaller one, or raise BATCHMILL_MAX_MEDIA_BYTES",
            ) from None

    async def _fetch(self, url: str) -> bytes:
        target = read_target(url, self._policy)
        async with asyncio.timeout(self._timeout_s):
            try:
                reader, writer = await self._connector.connect(target)
            except ForbiddenTarget:
                if target.address is not None:
                    raise
                # Whoever named the host must not learn what it means inside this network.
                raise ForbiddenTarget(
                    "its name leads to an address that is not public; for servers on your own "
                    f"network, set {self._policy.settings}_ALLOW_NETWORKS"
                ) from None
            exchange = HttpExchange(reader, writer)
            try:
                return await self._get(exchange, target)
            finally:
                exchange.close()

    async def _get(self, exchange: HttpExchange, target: Target) -> bytes:
        headers = {
            "host": target.host_header,
            "user-agent": _USER_AGENT,
            "accept": "image/*, audio/*",
            "accept-encoding": "identity",
            "connection": "close",
        }
        await exchange.request(target.path, headers, b"", method="GET")
        status, fields = await exchange.read_response_head()
        _check_status(status)
        if fields.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise MediaError(
                REFUSED, "the server of a URL compresses its response, although it was asked not to"
            )
        declared = fields.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise BodyTooLong
        return await exchange.read_body(self._max_bytes)


def _check_status(status: int) -> None:
    """Check that a response has the content.

    Raises:
        MediaError: it does not.
    """
    if status == 200:
        return
    if 300 <= status < 400:
        raise MediaError(
            REFUSED,
            f"the server of a URL redirects ({status}), which is not followed: give the URL that "
            "it leads to",
        )
    if status >= 500 or status in _TEMPORARY_STATUS:
        raise _unreachable(f"responded with the status {status}")
    raise MediaError(
        REFUSED, f"the server of a URL responded with the status {status}: check the URL"
    )


def _unreachable(what: str) -> MediaError:
    return MediaError(UNREACHABLE, f"the server of a URL {what}; another attempt may get it")
