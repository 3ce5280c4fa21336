"""Which shard an error of Redis came from, and errors of several shards together. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

#: Name of the attribute that an error of redis-py gets.
_ATTRIBUTE = "shard_name"


class ShardsFailed(RedisConnectionError):
    """Some shards failed. All were tried, and the others have done their part.

    A connection error, because a repetition may succeed, and every call may be repeated.
    """

    def __init__(self, failures: Mapping[str, RedisError], job_ids: Sequence[str] = ()) -> None:
        told = "; ".join(f"shard {name!r}: {error}" for name, error in failures.items())
        super().__init__(told)
        #: The error of each shard, by name.
        self.failures = dict(failures)
        #: The jobs that were submitted all the same.
        self.job_ids = tuple(job_ids)


def note_shard(error: RedisError, name: str) -> None:
    """Note in an error which shard it came from; a broker without a name notes nothing."""
    if name:
        setattr(error, _ATTRIBUTE, name)


def shards_of(error: RedisError) -> tuple[str, ...]:
    """Return the names of the shards that an error came from."""
    if isinstance(error, ShardsFailed):
        return tuple(error.failures)
    name = getattr(error, _ATTRIBUTE, "")
    return (name,) if name else ()


class ShardFailures:
    """Collects the failures of shards, so that all are tried."""

    def __init__(self) -> None:
        self._failures: dict[str, RedisError] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Collect an error of one shard; a single broker, without a name, raises it."""
        try:
            yield
        except RedisError as error:
            if not name:
                raise
            self._failures[name] = error

    @property
    def names(self) -> tuple[str, ...]:
        """The shards that failed."""
        return tuple(self._failures)

    def check(self, job_ids: Sequence[str] = ()) -> None:
        """Raise an error that names all shards that failed, and jobs that were submitted.

        Raises:
            ShardsFailed: there are some.
        """
        if self._failures:
            raise ShardsFailed(self._failures, job_ids)
