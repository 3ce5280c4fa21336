"""Runs commands over a connection of a client's pool, without the parts of redis-py for other uses.

redis-py measures each command for observers, looks up how to convert its reply, and packs each word
of it in several steps. For a script, that is more than half of the client's processor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from .connection import REPLICA_ERRORS

Command = Sequence[str | bytes | int]


def run_commands(client: Redis, commands: Sequence[Command]) -> list[Any]:
    """Run commands in one round trip, and repeat all of them as the client repeats one.

    Returns:
        Their replies, as the server sent them; an error that it sent is one of them.

    Raises:
        redis.exceptions.RedisError: the server did not reply.
    """
    packed = b"".join(map(_packed, commands))
    pool = client.connection_pool
    connection = pool.get_connection()

    def exchange() -> list[Any]:
        connection.send_packed_command([packed])
        return _checked([_read_reply(connection) for _ in commands])

    try:
        replies: list[Any] = connection.retry.call_with_retry(
            exchange, lambda error: connection.disconnect()
        )
        return replies
    finally:
        pool.release(connection)


async def async_run_commands(client: AsyncRedis, commands: Sequence[Command]) -> list[Any]:
    """Do the same for asyncio."""
    packed = b"".join(map(_packed, commands))
    pool = client.connection_pool
    connection: Any = await pool.get_connection()

    async def exchange() -> list[Any]:
        await connection.send_packed_command([packed])
        return _checked([await _async_read_reply(connection) for _ in commands])

    try:
        replies: list[Any] = await connection.retry.call_with_retry(
            exchange, lambda error: connection.disconnect()
        )
        return replies
    finally:
        await pool.release(connection)


def _packed(command: Command) -> bytes:
    """Return a command as RESP: an array of strings."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


def _checked(replies: list[Any]) -> list[Any]:
    """Return the replies, or raise that of a server that has become a replica: all are repeated."""
    for reply in replies:
        if isinstance(reply, REPLICA_ERRORS):
            raise reply
    return replies


def _read_reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


async def _async_read_reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
