"""Errors made of redis-py's errors: `broker_errors`. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from batchmill.producer.broker_url import redact
from batchmill.producer.errors import (
    BatchmillError,
    BrokerUnavailable,
    NotReplicated,
    UnsupportedBroker,
    UnusableRecord,
)
from batchmill.producer.protocol.calls.call import is_wrong_type
from batchmill.producer.shard_list import is_shard_list, read_shard_list

from .connection import is_server_fault
from .replication import NotConfirmed
from .server_version import UnsupportedServer
from .shard_errors import ShardsFailed, shards_of
from .tls_errors import tls_problem

#: What servers say to a client that sent no password.
_NO_LOGIN = ("HELLO must be called", "Authentication required")


@contextmanager
def broker_errors(url: str) -> Iterator[None]:
    """Turn redis-py's errors into ours; passwords stay out of the message.

    Args:
        url: of the broker, or the list of shards; an error of one names it.

    Raises:
        UnsupportedBroker: the broker is too old, or runs in cluster mode.
        NotReplicated: it has stored the call, but too few replicas have.
        BrokerUnavailable: the broker does not respond, or refuses calls of this kind for now.
        UnusableRecord: a key in Redis holds data that batchmill did not write.
    """
    try:
        yield
    except redis_errors.RedisError as error:
        told = _told(url, error)
        if told is None:
            raise
        raise told from error


def _told(url: str, error: redis_errors.RedisError) -> BatchmillError | None:
    """Return the error that one of redis-py stands for; None for a bug of ours."""
    if isinstance(error, ShardsFailed):
        return _failed_shards(url, error)
    shards = shards_of(error)
    if shards and is_shard_list(url):
        url = read_shard_list(url).named(shards[0]).url
    broker = f"broker at {redact(url)}"
    if shards:
        broker = f"shard {shards[0]!r}, {broker}"
    found = _error_of(broker, url, error)
    return found.of_shards(shards) if isinstance(found, BrokerUnavailable) else found


def _failed_shards(url: str, error: ShardsFailed) -> BatchmillError | None:
    """Return one error for all shards that failed."""
    found = [_told(url, each) for each in error.failures.values()]
    if None in found:
        return None
    told = found[0]
    if len(found) > 1:
        are_stored = all(isinstance(each, NotReplicated) for each in found)
        kind = NotReplicated if are_stored else BrokerUnavailable
        words = "; ".join(map(str, found)) + "; the other shards have done it"
        told = kind(words).of_shards(error.failures)
    if told is not None and error.job_ids:
        told.job_ids = error.job_ids
    return told


def _error_of(broker: str, url: str, error: redis_errors.RedisError) -> BatchmillError | None:
    match error:
        case UnsupportedServer():
            return UnsupportedBroker(f"{broker}: {error}")
        case NotConfirmed():
            return NotReplicated(
                f"{broker}: {error}; a failover may lose it until they do. Check the replicas, and "
                "repeat the call: with the same idempotency key it makes no second job",
                job_ids=error.job_ids,
            )
        case redis_errors.TimeoutError() | redis_errors.ConnectionError():
            return BrokerUnavailable(f"{broker}{_connection_problem(url, error)}")
        case redis_errors.InvalidResponse():
            return BrokerUnavailable(
                f"{broker} does not reply as Redis does; check the host and the port, and whether "
                "the server expects TLS (rediss://)"
            )
        case redis_errors.ResponseError() if is_wrong_type(error):
            return UnusableRecord(
                f"{broker}: a key holds data that batchmill did not write; find and delete the key "
                f"({error})"
            )
        case redis_errors.ResponseError() if is_server_fault(error):
            return BrokerUnavailable(f"{broker} refuses the call: {error}")
        case _:
            return None


def _connection_problem(url: str, error: redis_errors.RedisError) -> str:
    # The asyncio client wraps the errors of the greeting.
    causes = (error, error.__cause__)
    if any(isinstance(cause, redis_errors.TimeoutError) for cause in causes):
        return (
            f" does not reply: {error}; if it is only slow, raise timeout_s of the client or "
            f"BATCHMILL_BROKER_TIMEOUT_S{_no_tls_hint(url)}"
        )
    if any(isinstance(cause, redis_errors.AuthenticationError) for cause in causes):
        return f" {_login_refusal(error)}"
    problem = tls_problem(url, error)
    return f" {problem}" if problem else f": {error}"


def _login_refusal(error: Exception) -> str:
    # The server's own words for a missing password are about its HELLO command.
    if any(words in str(error) for words in _NO_LOGIN):
        return "needs a password: put it into the URL (redis://:PASSWORD@host:6379/0)"
    return f"refuses the login: {error}; check the user and the password in the URL"


def _no_tls_hint(url: str) -> str:
    # A server without TLS waits for the rest of a command that never comes.
    return "; if it does not speak TLS, use redis://" if url.startswith("rediss:") else ""
