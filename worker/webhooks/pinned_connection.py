"""Connections to receivers that nobody vouches for: looked up once, checked, and pinned.

A name that leads to a public address at the check and to this machine at the connection (DNS
rebinding) gains nothing, because there is no second look-up: the socket is connected to the very
address that was checked. TLS still names and verifies the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from batchmill.producer.webhook.target import ForbiddenTarget, Target, TargetPolicy

#: One look-up: as `socket.getaddrinfo`, which blocks.
LookUp = Callable[[str, int], list[tuple[Any, ...]]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: Addresses of one name that are tried.
_MAX_TRIES = 4
#: Bytes of an answer that wait in our memory before the receiver has to wait.
_BUFFER_BYTES = 16 * 1024
#: Look-ups that may hang at once: each holds a thread until the system's resolver gives up.
_MAX_LOOK_UPS = 512


class LookUpFailed(OSError):
    """The name leads to no address, or look-ups hang."""


class Connector:
    """Opens connections to targets, each pinned to an address that was checked."""

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        timeout_s: float,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare.

        Args:
            policy: decides which addresses may be connected to.
            timeout_s: for one address, the TLS handshake included.
            look_up: the system's resolver where absent.
            tls: the system's certificate authorities where absent; `SSL_CERT_FILE` names others.
        """
        self._policy = policy
        self._timeout_s = timeout_s
        self._look_up = look_up or _system_look_up
        self._tls = tls or ssl.create_default_context()
        self._look_ups = threading.BoundedSemaphore(_MAX_LOOK_UPS)

    async def connect(self, target: Target) -> Connection:
        """Connect to the first of the target's addresses that takes it.

        Raises:
            ForbiddenTarget: one of the addresses is not to be connected to. All are checked before
                the first is tried, so that a name is refused, or not, whatever its order.
            LookUpFailed: the name leads nowhere.
            OSError: no address answered, or the certificate is not the host's.
            TimeoutError: as OSError, for the last address tried.
        """
        addresses = await self._checked_addresses(target)
        error: OSError | None = None
        for family, address in addresses[:_MAX_TRIES]:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._open(target, family, address)
            except OSError as caught:  # TimeoutError is one
                error = caught
        assert error is not None
        raise error

    async def _checked_addresses(self, target: Target) -> list[tuple[int, tuple[Any, ...]]]:
        """Family and socket address of everything that the target leads to, all of it allowed."""
        host = target.host if target.address is None else str(target.address)
        found = await self._looked_up(host, target.port)
        addresses = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
        if not addresses:
            raise LookUpFailed("the name leads to no address")
        for family, address in addresses:
            if family not in (socket.AF_INET, socket.AF_INET6):
                raise ForbiddenTarget("not an IP address", reason="refused_address")
            self._policy.check_address(ip_address(address[0].partition("%")[0]))
        return addresses

    async def _looked_up(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Look up in a thread of its own, which does not hold up the process' end.

        The event loop's own threads are few and serve Redis too: names that hang must not take
        them all.
        """
        if not self._look_ups.acquire(blocking=False):
            raise LookUpFailed(f"{_MAX_LOOK_UPS} look-ups hang already")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

        def settle(result: list[tuple[Any, ...]] | None, error: Exception | None) -> None:
            if answer.done():  # given up meanwhile
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result or [])

        def run() -> None:
            result, error = None, None
            try:
                result = self._look_up(host, port)
            except (OSError, ValueError) as caught:  # a label too long is a UnicodeError
                error = LookUpFailed(type(caught).__name__)
            finally:
                self._look_ups.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        try:
            threading.Thread(target=run, name="webhook-look-up", daemon=True).start()
        except RuntimeError as error:
            self._look_ups.release()
            raise LookUpFailed(str(error)) from None
        return await answer

    async def _open(self, target: Target, family: int, address: tuple[Any, ...]) -> Connection:
        loop = asyncio.get_running_loop()
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await loop.sock_connect(connected, address)
            return await asyncio.open_connection(
                sock=connected,
                limit=_BUFFER_BYTES,
                ssl=self._tls if target.scheme == "https" else None,
                server_hostname=target.host if target.scheme == "https" else None,
            )
        except BaseException:
            connected.close()
            raise


def _system_look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
