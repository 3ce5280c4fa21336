"""Runs commands over a connection of a client's pool, without the parts of redis-py for other uses.

redis-py measures each command for observers, looks up how to convert its reply, and packs each word
of it in several steps. For a script, that is more than half of the client's processor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import DataError, ResponseError

from .connection import REPLICA_ERRORS
from .shard_errors import note_shard

Command = Sequence[str | bytes | int]
#: That are sent at once: the time limit of a connection is one of each piece.
_PIECE_BYTES = 1 << 16
#: What RESP writes before a word, by its length; most are short.
_HEADS = [b"$%d\r\n" % length for length in range(256)]


def run_commands(client: Redis, commands: Sequence[Command]) -> list[Any]:
    """Run commands in one round trip, and repeat all of them as the client repeats one.

    Returns:
        Their replies, as the server sent them; an error that it sent is one of them.

    Raises:
        redis.exceptions.RedisError: the server did not reply.
    """
    pieces = _pieces(commands)
    pool = client.connection_pool
    connection = pool.get_connection()

    def exchange() -> list[Any]:
        connection.send_packed_command(pieces)
        return _checked([_read_reply(connection) for _ in commands], connection.retry)

    try:
        replies: list[Any] = connection.retry.call_with_retry(
            exchange, lambda error: connection.disconnect()
        )
        return replies
    finally:
        pool.release(connection)


async def async_run_commands(client: AsyncRedis, commands: Sequence[Command]) -> list[Any]:
    """Do the same for asyncio."""
    pieces = _pieces(commands)
    pool = client.connection_pool
    connection: Any = await pool.get_connection()

    async def exchange() -> list[Any]:
        await connection.send_packed_command(pieces)
        replies = [await _async_read_reply(connection) for _ in commands]
        return _checked(replies, connection.retry)

    try:
        replies: list[Any] = await connection.retry.call_with_retry(
            exchange, lambda error: connection.disconnect()
        )
        return replies
    finally:
        await pool.release(connection)


def _pieces(commands: Sequence[Command]) -> list[bytes]:
    """Return commands as RESP: arrays of strings, in pieces to send one after another."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if isinstance(word, bytes) else _encoded(word)
            length = len(data)
            parts += (
                _HEADS[length] if length < len(_HEADS) else b"$%d\r\n" % length,
                data,
                b"\r\n",
            )
    packed = b"".join(parts)
    if len(packed) <= _PIECE_BYTES:
        return [packed]
    return [packed[at : at + _PIECE_BYTES] for at in range(0, len(packed), _PIECE_BYTES)]


def _encoded(word: object) -> bytes:
    """Return text or a number as bytes; anything else would be stored as its name in Python."""
    if isinstance(word, str):
        return word.encode()
    if isinstance(word, int | float) and not isinstance(word, bool):
        return str(word).encode()
    raise DataError(f"a word of a command is of the type {type(word).__name__}")


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


def _checked(replies: list[Any], retry: Any) -> list[Any]:
    """Return the replies, or raise that of a server that has become a replica: all are repeated.

    Errors name the shard, as those that the client raises.
    """
    for reply in replies:
        if isinstance(reply, ResponseError):
            note_shard(reply, getattr(retry, "shard_name", ""))
        if isinstance(reply, REPLICA_ERRORS):
            raise reply
    return replies
