"""URLs and names that lead to forbidden addresses, and a socket that notices connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.outbound.pinned_connection import LookUp
from batchmill.worker.webhooks.sender import SendOutcome, WebhookSender

BODY = b"{}"
ANY_PORT = [(1, 65535)]
#: This machine, in every notation known to have passed some filter.
NOTATIONS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
    "017700000001", "0", "0.0.0.0", "127.0.0.1.", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fec0::1]", "[fe80::1%25lo]", "localhost",
    "localhost.", "LOCALHOST", "user@127.0.0.1", "example.com@127.0.0.1", "127.0.0.1\\@a.example",
    "%31%32%37.0.0.1", "\u2460\u2461\u2466.0.0.1", "127\u30020.0.1", "127.0.0.1\r\nx: y",
]  # fmt: skip
METADATA = ["169.254.169.254", "[fd00:ec2::254]", "168.63.129.16", "100.100.100.200", "192.0.0.192"]
#: Addresses that a name resolves to: one forbidden address is enough, at any position.
ADDRESSES = [
    ["127.0.0.1"],
    ["93.184.215.14", "127.0.0.1"],
    ["127.0.0.1", "93.184.215.14"],
    ["93.184.215.14", "::ffff:127.0.0.1"],
    ["2606:4700::1111", "::1"],
    ["10.0.0.1"],
    ["169.254.169.254"],
]
_ADDRESS = ("refused_address",)
_ADDRESS_OR_URL = ("refused_address", "refused_url")


@dataclass(frozen=True)
class Attack:
    """One row of the table."""

    target: str
    #: `{port}` stands for the listener's port.
    url: str
    #: Reasons for the refusal that are right.
    reasons: tuple[str, ...]
    #: Addresses that the name resolves to; empty leaves it to the system's resolver.
    addresses: tuple[str, ...] = ()
    #: Sent by the default rules: https, ports 443 and 80.
    by_default_rules: bool = False

    def __str__(self) -> str:
        return f"{self.target} {self.url!a} {','.join(self.addresses)}".strip()


def attacks() -> list[Attack]:
    """Return the table."""
    default_rules = [
        ("http://example.com/", "refused_scheme"),
        ("file:///etc/passwd", "refused_scheme"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "refused_scheme"),
        ("https://example.com:22/", "refused_port"),
        ("https://example.com:6379/", "refused_port"),
        ("https://127.0.0.1:{port}/", "refused_port"),
        ("https://127.0.0.1/", "refused_address"),
        ("https:///hook", "refused_url"),
    ]
    return [
        *(
            Attack("this machine", f"{scheme}://{host}:{{port}}/", _ADDRESS_OR_URL)
            for scheme in ("http", "https")
            for host in NOTATIONS
        ),
        *(Attack("metadata", f"http://{host}/latest/meta-data/", _ADDRESS) for host in METADATA),
        *(Attack("name", "http://two.example:{port}/", _ADDRESS, tuple(x)) for x in ADDRESSES),
        *(Attack("default rules", url, (x,), by_default_rules=True) for url, x in default_rules),
    ]


class Listener:
    """A socket that notices every connection although no server accepts it."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        dual = host == "::"
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]

    @classmethod
    def everywhere(cls) -> Listener:
        """Listen on every address of this machine."""
        return cls("::" if socket.has_dualstack_ipv6() else "0.0.0.0")

    def num_connections(self) -> int:
        """Return the number of connections since the last call."""
        number = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.accept()[0].close()
                number += 1
        return number


def send(
    url: str,
    *,
    networks: Sequence[str] = (),
    look_up: LookUp | None = None,
    tls: ssl.SSLContext | None = None,
    total_timeout_s: float = 5.0,
    policy: TargetPolicy | None = None,
) -> SendOutcome:
    """Make one attempt. Unless a policy is given, only addresses can be refused."""
    policy = policy or TargetPolicy(
        allow_http=True, ports=ANY_PORT, networks=[ip_network(text) for text in networks]
    )
    sender = WebhookSender(
        connect_timeout_s=1.0,
        total_timeout_s=total_timeout_s,
        policy=policy,
        user_agent="batchmill/test",
        look_up=look_up,
        tls=tls,
    )
    return asyncio.run(sender.send(url, BODY, {"webhook-id": "evt_1"}))


def carry_out(attack: Attack, port: int) -> SendOutcome:
    """Send to the target of an attack, with the listener on a port."""
    return send(
        attack.url.replace("{port}", str(port)),
        look_up=names(*attack.addresses) if attack.addresses else None,
        policy=TargetPolicy() if attack.by_default_rules else None,
    )


def names(*addresses: str) -> LookUp:
    """Return a look-up that resolves every name to these addresses."""

    def look_up(host: str, port: int) -> list[tuple[Any, ...]]:
        return [
            entry
            for address in addresses
            for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        ]

    return look_up
