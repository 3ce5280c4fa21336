"""The operator's settings that one URL needs, for messages that say how to allow it."""

from __future__ import annotations

from .address_ranges import is_forbidden
from .target import DEFAULT_PORTS, ForbiddenTarget, literal_address, split_url

_LOOPBACK_NETWORKS = {4: "127.0.0.0/8", 6: "::1/128"}
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def needed_settings(url: str) -> list[str]:
    """Return `BATCHMILL_WEBHOOK_ALLOW_…=value` for all that a URL needs; nothing is looked up.

    For a host name that may have a private address, the network stays for the operator to fill in.
    The list is empty if no setting can allow the URL.
    """
    try:
        parts = split_url(url)
    except ForbiddenTarget:
        return []
    host = (parts.hostname or "").lower()
    settings = ["BATCHMILL_WEBHOOK_ALLOW_HTTP=true"] if parts.scheme == "http" else []
    if parts.port is not None and parts.port not in DEFAULT_PORTS.values():
        settings.append(f"BATCHMILL_WEBHOOK_ALLOW_PORTS={parts.port}")
    network = _network(host, in_brackets=parts.netloc.startswith("["))
    if network is not None:
        settings.append(f"BATCHMILL_WEBHOOK_ALLOW_NETWORKS={network}")
    return settings


def _network(host: str, *, in_brackets: bool) -> str | None:
    """Return the network of a host that is not public; None for public and unknown ones."""
    if host.removesuffix(".") in _LOOPBACK_NAMES:
        return ",".join(_LOOPBACK_NETWORKS.values())
    try:
        address = literal_address(host, in_brackets=in_brackets)
    except ForbiddenTarget:
        return None
    if address is None or not is_forbidden(address, ()):
        return None
    if address.is_loopback:
        return _LOOPBACK_NETWORKS[address.version]
    return f"{address}/{address.max_prefixlen}"
