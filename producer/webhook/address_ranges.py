"""Addresses that no webhook is sent to: everything that is not the public internet.

`ipaddress.is_global` is not strict enough: it accepts multicast and several IPv6 forms of a private
IPv4 address, and it does not know Azure's host service.

Source: the range list `recommended_v1` of Microsoft's AntiSSRF (35 ranges, most of them from
IANA's special-purpose address registries, RFC 6890); a test compares the two. One range is added:
the deprecated IPv4-compatible IPv6 addresses of RFC 4291, section 2.5.5.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_IPV4_RANGES = (
    "0.0.0.0/8",  # this host
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared by the customers of a provider
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's host service
    "169.254.0.0/16",  # link-local; the metadata services of most clouds
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # automatic multicast tunnels
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
)
_IPV6_RANGES = (
    "::/128",  # unspecified
    "::1/128",  # loopback
    "64:ff9b::/96",  # NAT64: an IPv4 address inside
    "64:ff9b:1::/48",  # NAT64 for local use
    "100::/64",  # discard
    "100:0:0:1::/64",  # dummy
    "2001::/23",  # protocol assignments, Teredo among them: an IPv4 address inside
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4: an IPv4 address inside
    "2620:4f:8000::/48",  # AS112
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing
    "fc00::/7",  # unique local
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local
    "ff00::/8",  # multicast
)
_IPV4_COMPATIBLE = "::/96"

#: The ranges of the source.
SPECIAL_RANGES: tuple[Network, ...] = tuple(
    ip_network(text) for text in (*_IPV4_RANGES, *_IPV6_RANGES)
)
_FORBIDDEN = (*SPECIAL_RANGES, ip_network(_IPV4_COMPATIBLE))


def unwrap(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped one; any other address unchanged.

    The kernel connects `::ffff:127.0.0.1` over IPv4, so the rules for IPv4 apply.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_forbidden(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Return whether an address is outside the public internet.

    Args:
        address: The address to connect to.
        allowed: Networks that the operator allows even if they are not public.
    """
    address = unwrap(address)
    if any(address in network for network in allowed):
        return False
    return any(address in network for network in _FORBIDDEN)
