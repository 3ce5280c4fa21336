"""Connections to untrusted receivers: the name is resolved once, checked, and pinned.

DNS rebinding, a name that leads to a public address at the check and to this machine at the
connection, is ruled out because there is no second look-up: the socket connects to the very address
that was checked. TLS still names and verifies the host.
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

#: A blocking look-up with the signature of `socket.getaddrinfo`.
LookUp = Callable[[str, int], list[tuple[Any, ...]]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: Number of addresses of one name that are tried.
_MAX_TRIES = 4
#: Bytes of a response that are buffered before the receiver has to wait.
_BUFFER_BYTES = 16 * 1024
#: Look-ups in flight at once: each holds a thread until the system's resolver times out.
_MAX_LOOK_UPS = 512


class LookUpFailed(OSError):
    """The name has no address, or too many look-ups hang."""


class PinnedConnector:
    """Opens connections to targets, each pinned to an address that was checked."""

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        timeout_s: float,
        look_up: LookUp | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bind to a policy.

        Args:
            policy: decides which addresses may be connected to.
            timeout_s: for one address, the TLS handshake included.
            look_up: None takes the system's resolver.
            tls: None takes the system's certificate authorities; `SSL_CERT_FILE` names others.
        """
        self._policy = policy
        self._timeout_s = timeout_s
        self._look_up = look_up or _system_look_up
        self._tls = tls or ssl.create_default_context()
        self._look_ups = threading.BoundedSemaphore(_MAX_LOOK_UPS)

    async def connect(self, target: Target) -> Connection:
        """Connect to the first of the target's addresses that accepts.

        Raises:
            ForbiddenTarget: one of the addresses is not allowed. All are checked before the first
                is tried, so that the order of the addresses does not matter.
            LookUpFailed: the name has no address.
            OSError: no address accepted, or the certificate is not the host's.
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
        """Return the target's addresses with their families; all of them are allowed."""
        host = target.host if target.address is None else str(target.address)
        found = await self._resolve(host, target.port)
        addresses = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
        if not addresses:
            raise LookUpFailed("the name has no address")
        for family, address in addresses:
            if family not in (socket.AF_INET, socket.AF_INET6):
                raise ForbiddenTarget("not an IP address", reason="refused_address")
            self._policy.check_address(ip_address(address[0].partition("%")[0]))
        return addresses

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Look up a name in a separate daemon thread, which does not delay the process' end.

        The event loop's default threads are few and serve Redis too: look-ups that hang must not
        take all of them.
        """
        if not self._look_ups.acquire(blocking=False):
            raise LookUpFailed(f"{_MAX_LOOK_UPS} look-ups hang already")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

        def settle(result: list[tuple[Any, ...]] | None, error: Exception | None) -> None:
            if found.done():  # cancelled in the meantime
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(result or [])

        def run() -> None:
            result, error = None, None
            try:
                result = self._look_up(host, port)
            except (OSError, ValueError) as caught:  # a label that is too long is a UnicodeError
                error = LookUpFailed(type(caught).__name__)
            finally:
                self._look_ups.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
                loop.call_soon_threadsafe(settle, result, error)

        try:
            threading.Thread(target=run, name="look-up", daemon=True).start()
        except RuntimeError as error:
            self._look_ups.release()
            raise LookUpFailed(str(error)) from None
        return await found

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
