"""Allowed webhook targets: one check of a URL, at submit and again at every attempt.

Submit refuses every URL that is wrong without a DNS lookup, so that the caller sees the mistake.
The deliverer checks the URL again, because any client of Redis may have written the record, and
then checks every address that the name resolves to.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import SplitResult, urlsplit

from .address_ranges import Address, Network, is_forbidden

#: Ports that need no setting.
DEFAULT_PORTS = {"https": 443, "http": 80}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
#: Last label of a host that resolvers read as an IPv4 address, in any base.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_NAME_CHARS = 253


class ForbiddenTarget(ValueError):
    """A webhook must not be sent to this URL.

    Attributes:
        reason: A code for logs and dead letters: `refused_url`, `refused_scheme`,
            `refused_port` or `refused_address`.
    """

    def __init__(self, message: str, *, reason: str = "refused_url"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TargetPolicy:
    """Targets that the operator allows besides https to public addresses at port 443."""

    allow_http: bool = False
    #: Inclusive ranges of ports besides 443 and 80.
    ports: Sequence[tuple[int, int]] = ()
    #: Networks that may be reached although they are not public.
    networks: Sequence[Network] = ()
    #: What the names of these settings begin with, for messages.
    settings: str = "BATCHMILL_WEBHOOK"

    @property
    def _peers(self) -> str:
        return "receivers" if self.settings == "BATCHMILL_WEBHOOK" else "servers"

    def check_address(self, address: Address) -> None:
        """Refuse an address that is neither public nor in an allowed network.

        Raises:
            ForbiddenTarget: it must not be connected to.
        """
        if is_forbidden(address, self.networks):
            raise ForbiddenTarget(
                f"address {address} is not public; for {self._peers} on your own network, set "
                f"{self.settings}_ALLOW_NETWORKS",
                reason="refused_address",
            )

    def check_scheme(self, scheme: str) -> None:
        """Refuse plain http if it is not allowed.

        Raises:
            ForbiddenTarget: it must not be used.
        """
        if scheme == "http" and not self.allow_http:
            raise ForbiddenTarget(
                "plain http can be read in transit; use https, or set "
                f"{self.settings}_ALLOW_HTTP=true for {self._peers} on your own network",
                reason="refused_scheme",
            )

    def check_port(self, port: int) -> None:
        """Refuse a port that is neither 443, 80 nor allowed.

        Raises:
            ForbiddenTarget: it must not be connected to.
        """
        if port in DEFAULT_PORTS.values():
            return
        if not any(first <= port <= last for first, last in self.ports):
            raise ForbiddenTarget(
                f"port {port} must be 443, 80 or one of {self.settings}_ALLOW_PORTS",
                reason="refused_port",
            )


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL, split into the parts that a request needs."""

    scheme: str
    #: Lower case, without brackets and final dot, as in a certificate.
    host: str
    port: int
    #: The host as an address, if it is one in any notation; None for a name to resolve.
    address: Address | None
    #: Path and query.
    path: str

    @property
    def host_header(self) -> str:
        """Value of the Host header, with the port unless it is the default one."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"


def read_target(url: str, policy: TargetPolicy) -> Target:
    """Split a webhook URL, and refuse a forbidden target. Resolves no names.

    Raises:
        ForbiddenTarget: the reason, for the caller who chose the URL.
    """
    parts = split_url(url)
    policy.check_scheme(parts.scheme)
    port = parts.port if parts.port is not None else DEFAULT_PORTS[parts.scheme]
    policy.check_port(port)
    host = (parts.hostname or "").lower()
    if not parts.netloc.startswith("["):
        host = host.removesuffix(".")
    address = literal_address(host, in_brackets=parts.netloc.startswith("["))
    if address is not None:
        policy.check_address(address)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host if address is None else str(address), port, address, path)


def split_url(url: str) -> SplitResult:
    """Split a well-formed URL, and refuse a form that no operator can allow.

    Raises:
        ForbiddenTarget: characters, scheme, host, port or user name are not allowed.
    """
    if not url.isascii() or any(char <= " " or char in '\x7f\\"<>^`{|}' for char in url):
        raise ForbiddenTarget(
            "contains spaces, control characters, backslashes, quotes or characters outside ASCII: "
            "percent-encode them"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ForbiddenTarget(
            "has brackets without an IPv6 address, or a port that is not a number up to 65535"
        ) from None
    if parts.scheme not in DEFAULT_PORTS:
        raise ForbiddenTarget(f"scheme is {parts.scheme!r}; use https", reason="refused_scheme")
    if "@" in parts.netloc:
        raise ForbiddenTarget("contains a user name or password; deliveries are signed instead")
    if not parts.hostname:
        raise ForbiddenTarget("has no host")
    if port == 0:
        raise ForbiddenTarget("port is 0, on which no server listens", reason="refused_port")
    if "#" in url:
        raise ForbiddenTarget("contains a fragment, which is never sent")
    return parts


def literal_address(host: str, *, in_brackets: bool) -> Address | None:
    """Return a host as an address if it is one in any notation of resolvers; None for a name."""
    if in_brackets:
        try:
            address = IPv6Address(host)
        except ValueError:
            raise ForbiddenTarget(f"host [{host}] must be an IPv6 address") from None
        if address.scope_id is not None:
            raise ForbiddenTarget("contains an IPv6 zone, which has no meaning on another machine")
        return address
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:  # decimal, octal or hexadecimal, one to four parts, as the C library does
            return IPv4Address(socket.inet_aton(host))
        except OSError:
            raise ForbiddenTarget(
                f"host {host} ends in a number but is not an IPv4 address"
            ) from None
    if len(host) > _MAX_NAME_CHARS or not _NAME.fullmatch(host):
        raise ForbiddenTarget(f"host {host[:80]!r} is not a host name")
    return None
