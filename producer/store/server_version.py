"""Refuses servers that are too old, or that are a part of a cluster, from their own greeting."""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError

#: The oldest versions that run all scripts and report their refusals as the client reads them.
OLDEST_VERSIONS = {"redis": (7, 0), "valkey": (7, 2)}


class UnsupportedServer(RedisConnectionError):
    """The server cannot be used. Connecting again does not help until another one replies."""


def check_greeting(reply: object) -> None:
    """Check a server by its reply to HELLO, which begins a connection; other replies pass.

    A server that sends none, or an unknown name, is not judged.

    Raises:
        UnsupportedServer: it is older than `OLDEST_VERSIONS`, or runs in cluster mode.
    """
    if not isinstance(reply, dict) or not reply.keys() >= {b"server", b"version", b"proto"}:
        return
    server, version, mode = (
        _text(reply.get(name, b"")) for name in (b"server", b"version", b"mode")
    )
    if mode == "cluster":
        raise UnsupportedServer(
            f"the server ({server} {version}) runs in cluster mode, which is not supported: jobs "
            "are changed by scripts over keys of one node; use a server without cluster mode"
        )
    oldest = OLDEST_VERSIONS.get(server)
    numbers = _numbers(version)
    if oldest is not None and numbers is not None and numbers < oldest:
        names = " or ".join(
            f"{name.capitalize()} {major}.{minor}"
            for name, (major, minor) in OLDEST_VERSIONS.items()
        )
        raise UnsupportedServer(
            f"the server is {server.capitalize()} {version}; batchmill needs {names}, or later"
        )


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _numbers(version: str) -> tuple[int, int] | None:
    parts = version.split(".")[:2]
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])
