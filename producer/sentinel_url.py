"""Broker URLs of a Redis whose primary Sentinel names: `sentinel://host,host,host/service/0`.

Redis Sentinel is a group of processes that watch a primary and its replicas, and promote a replica
if the primary is gone. A program asks them where the primary is each time that it connects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

#: The schemes, without and with TLS, each with that of the servers behind it.
SCHEMES = {"sentinel": "redis", "sentinels": "rediss"}
_DEFAULT_PORT = 26379
_FORM = "sentinel://[user:password@]host[:port],host[:port],…/service[/database]"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:,/@\s]+)(?::([0-9]{1,5}))?")
_DATABASE = re.compile(r"[0-9]{1,9}")
_SERVICE = re.compile(r"[\w.-]+", re.ASCII)
#: Options of the URL that are for the Sentinels and not for Redis, by redis-py's names.
_OWN_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}
#: Options of TLS, which count for both.
_TLS_PREFIX = "ssl_"


@dataclass(frozen=True, slots=True)
class SentinelService:
    """A Redis service that Sentinels watch."""

    #: Host and port of each Sentinel.
    sentinels: tuple[tuple[str, int], ...]
    #: Name under which they know the primary.
    service: str
    database: int
    has_tls: bool
    #: Login for Redis; empty without one.
    userinfo: str = field(default="", repr=False)
    #: Options of the URL for connections to Redis.
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    #: Keyword arguments of redis-py for connections to the Sentinels, as pairs.
    sentinel_options: tuple[tuple[str, Any], ...] = field(default=(), repr=False)

    @property
    def server_url(self) -> str:
        """A URL of the primary as redis-py reads it, with the service's name as its host."""
        scheme = SCHEMES["sentinels" if self.has_tls else "sentinel"]
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{scheme}://{self._login}{self.service}/{self.database}{query}"

    @property
    def celery_url(self) -> str:
        """The URL as Celery and kombu write it; `celery_options` belong to it."""
        hosts = [f"sentinel://{self._login}{_in_url(host)}:{port}" for host, port in self.sentinels]
        return ";".join(hosts) + f"/{self.database}"

    @property
    def celery_options(self) -> dict[str, Any]:
        """`broker_transport_options`, and those of the result backend, for `celery_url`."""
        options: dict[str, Any] = {"master_name": self.service}
        if self.sentinel_options:
            options["sentinel_kwargs"] = dict(self.sentinel_options)
        return options

    @property
    def _login(self) -> str:
        return f"{self.userinfo}@" if self.userinfo else ""


def is_sentinel_url(url: str) -> bool:
    """Return whether a URL names Sentinels."""
    return url.partition("://")[0] in SCHEMES


def read_sentinel_url(url: str) -> SentinelService:
    """Return the service that a URL names.

    Raises:
        ValueError: a part of the URL is missing or wrong. The message shows no password.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"the broker URL must have the form {_FORM}")
    address, _, query = rest.partition("?")
    login, at, place = address.rpartition("@")
    hosts, *path = place.split("/")
    service, database = [*path, "", ""][:2]
    if not _SERVICE.fullmatch(service) or len(path) > 2:
        raise ValueError(
            f"the broker URL must name the service that the Sentinels watch, and nothing after its "
            f"database: {_FORM}"
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    database = options.pop("db", "") or database or "0"
    if not _DATABASE.fullmatch(database):
        raise ValueError(
            f"the broker URL has the database {database!r}; it must be a number from 0: {_FORM}"
        )
    own: dict[str, Any] = {
        name: options.pop(key) for key, name in _OWN_OPTIONS.items() if key in options
    }
    has_tls = scheme == "sentinels"
    if has_tls:
        own |= {"ssl": True}
        own |= {name: value for name, value in options.items() if name.startswith(_TLS_PREFIX)}
    return SentinelService(
        sentinels=tuple(map(_read_host, hosts.split(","))),
        service=service,
        database=int(database),
        has_tls=has_tls,
        userinfo=_checked_login(login) if at else "",
        options=tuple(options.items()),
        sentinel_options=tuple(own.items()),
    )


def _read_host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = _DEFAULT_PORT if match is None or match[2] is None else int(match[2])
    if match is None or not 0 < port < 65536:
        raise ValueError(
            f"the broker URL has the Sentinel {text!r}; it must be host or host:port: {_FORM}"
        )
    return match[1].strip("[]"), port


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _checked_login(login: str) -> str:
    """Return user and password in the form of a URL."""
    user, colon, password = login.partition(":")
    return quote(unquote(user), safe="") + colon + quote(unquote(password), safe="")
