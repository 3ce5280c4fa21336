"""The broker's URL: from the caller, the environment, or this user's embedded broker."""

from __future__ import annotations

import math
import os
import re
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from .errors import BrokerUnavailable
from .secrets_from_files import find_secret
from .sentinel_url import is_sentinel_url, read_sentinel_url
from .shard_list import is_shard_list, read_shard_list

#: Seconds that a call to the broker may take in all, if nothing else is set.
DEFAULT_TIMEOUT_S = 10.0
#: Seconds that a write waits for replicas, if any are asked for and nothing else is set.
DEFAULT_REPLICA_TIMEOUT_S = 1.0

#: A program has one broker or a list of shards.
BOTH_ARE_SET = "BATCHMILL_BROKER_URL and BATCHMILL_BROKER_URLS are both set: unset one of them"

_SCHEMES = ("redis", "rediss", "unix", "redis+socket")
#: A password as an option of the URL, as redis-py's own examples write it for a socket.
_PASSWORD_OPTION = re.compile(r"([?&](?:ssl_|sentinel_)?password=)[^&#]*")


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return this user's folder for the embedded broker's socket. It may not exist yet."""
    if explicit := environ.get("BATCHMILL_RUNTIME_DIR"):
        return Path(explicit)
    if xdg := environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "batchmill"
    return Path(tempfile.gettempdir()) / f"batchmill-{os.getuid()}"


def embedded_socket(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the embedded broker's unix socket."""
    return runtime_dir(environ) / "broker.sock"


def find_broker(url: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the broker's URL: the given one, else the environment's, else the embedded broker's.

    The environment variable is `BATCHMILL_BROKER_URL`, or `BATCHMILL_BROKER_URLS` for a list of
    shards; with `_FILE` at its end it names a file.

    Raises:
        BrokerUnavailable: no URL is given, and this user runs no embedded broker.
        ValueError: the URL's scheme is not supported, the list of shards is wrong, both variables
            are set, or a file cannot be read.
    """
    if given := url or _url_of_environment(environ):
        return broker_urls(given)
    socket = embedded_socket(environ)
    _check_socket_owner(socket)
    if socket.is_socket():
        return f"unix://{socket}"
    raise BrokerUnavailable(
        "no broker: no URL was given, BATCHMILL_BROKER_URL is not set and there is no embedded "
        f"broker at {socket}; start one with `batchmill up`, or give the URL of a Redis server "
        "(redis://host:6379/0)"
    )


def broker_urls(url: str) -> str:
    """Return a URL, or a list of shards, with each URL in redis-py's format.

    Raises:
        ValueError: the list or a URL is wrong.
    """
    if not is_shard_list(url):
        return redis_url(url)
    items = []
    for shard, item in zip(read_shard_list(url).shards, url.split(), strict=True):
        try:
            items.append(f"{item.partition('=')[0]}={redis_url(shard.url)}")
        except ValueError as error:
            raise ValueError(f"shard {shard.name!r}: {error}") from None
    return " ".join(items)


def url_of_shard(url: str, name: str | None) -> str:
    """Return the URL of one broker: of the shard with a name, or the URL itself if it is no list.

    Raises:
        ValueError: a list needs a name that is in it, and a single URL has no shards.
    """
    shards = read_shard_list(url)
    if shards.only is not None:
        if name:
            raise ValueError(
                f"BATCHMILL_SHARD is {name!r}, and there is one broker without shards: set "
                "BATCHMILL_BROKER_URLS, or unset BATCHMILL_SHARD"
            )
        return url
    return shards.named(name).url if name else redis_url(url)


def _url_of_environment(environ: Mapping[str, str]) -> str | None:
    one = find_secret("BATCHMILL_BROKER_URL", environ)
    several = find_secret("BATCHMILL_BROKER_URLS", environ)
    if one and several:
        raise ValueError(BOTH_ARE_SET)
    return one or several


def find_timeout_s(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that a call may take: `BATCHMILL_BROKER_TIMEOUT_S`, else the default.

    Raises:
        ValueError: the variable is not a positive number.
    """
    text = environ.get("BATCHMILL_BROKER_TIMEOUT_S")
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        return check_timeout_s(float(text))
    except ValueError:
        raise ValueError(
            f"BATCHMILL_BROKER_TIMEOUT_S is {text!r}; it must be a number of seconds above 0"
        ) from None


def check_timeout_s(timeout_s: float) -> float:
    """Return a timeout of calls to the broker.

    Raises:
        ValueError: it is not a positive number.
    """
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s is {timeout_s}; it must be a number of seconds above 0")
    return timeout_s


def redis_url(url: str) -> str:
    """Return a URL in redis-py's format (Celery writes unix sockets as `redis+socket://`).

    Raises:
        ValueError: the scheme is not redis, rediss, unix, redis+socket, sentinel or sentinels,
            the URL of Sentinels is wrong, or it is a list of shards.
    """
    if is_shard_list(url):
        raise ValueError(
            f"this works with one broker, and the URL is a list of shards "
            f"({read_shard_list(url).names}): set BATCHMILL_SHARD to the name of one, or give its "
            "URL"
        )
    scheme, separator, rest = url.partition("://")
    if is_sentinel_url(url):
        read_sentinel_url(url)
        return url
    if not separator or scheme not in _SCHEMES:
        start = repr(scheme) if separator else "no scheme"  # the rest may be a password
        raise ValueError(
            f"broker URL starts with {start}; it must start with one of "
            "redis://, rediss://, unix://, redis+socket://, sentinel:// or sentinels:// (Redis "
            "Cluster is not supported)"
        )
    if scheme == "redis+socket":
        return "unix://" + rest.replace("virtual_host=", "db=")
    return url


def celery_url(url: str) -> str:
    """Return a URL in Celery's format.

    Credentials and the number of the database move from the options to the places where Celery
    reads them, and where `celery inspect` hides a password. The URL of Sentinels also needs
    `celery_options`, and one with TLS `celery_tls`.
    """
    if is_sentinel_url(url):
        return read_sentinel_url(url).celery_url
    parts = urlsplit(redis_url(url))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    scheme, netloc, path = parts.scheme, parts.netloc, parts.path
    if "password" in options:
        user, password = options.pop("username", ""), options.pop("password")
        netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{netloc.rpartition('@')[2]}"
    if scheme == "unix":
        scheme = "redis+socket"
        if "db" in options:
            options["virtual_host"] = options.pop("db")
    elif "db" in options:
        path = f"/{options.pop('db')}"
    query = f"?{urlencode(options)}" if options else ""
    return f"{scheme}://{netloc}{path}{query}"


def celery_options(url: str) -> dict[str, Any]:
    """Return the options that Celery needs besides `celery_url`; none for the URL of a server.

    They go into `broker_transport_options` and `result_backend_transport_options`.
    """
    return read_sentinel_url(url).celery_options if is_sentinel_url(url) else {}


def celery_tls(url: str) -> dict[str, Any]:
    """Return the options of TLS that Celery needs besides `celery_url`; none without TLS.

    They go into `broker_use_ssl` and `redis_backend_use_ssl`. The certificate of the server is
    checked unless the URL says otherwise, as redis-py does; Celery has no default.
    """
    if is_sentinel_url(url):
        service = read_sentinel_url(url)
        # Celery reads no options from its own URL of Sentinels.
        options = dict(service.options) if service.has_tls else None
    else:
        parts = urlsplit(redis_url(url))
        options = dict(parse_qsl(parts.query)) if parts.scheme == "rediss" else None
    if options is None:
        return {}
    given = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, **given}


def redact(url: str) -> str:
    """Return a URL, or a list of shards, without passwords, for logs and messages."""
    if is_shard_list(url):
        pairs = (item.partition("=") for item in url.split())
        return " ".join(f"{name}={redact(one)}" for name, _, one in pairs)
    url = _PASSWORD_OPTION.sub(r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()


def _check_socket_owner(socket: Path) -> None:
    """Check the owner: in a shared folder, another user's socket could read every prompt."""
    try:
        owner = socket.parent.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.getuid():
        raise BrokerUnavailable(
            f"{socket.parent} belongs to user {owner}, not to you ({os.getuid()}); "
            "set BATCHMILL_RUNTIME_DIR to a folder of yours"
        )
