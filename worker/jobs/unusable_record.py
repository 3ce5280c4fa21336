"""Corrupt records: a job whose keys in Redis hold something that batchmill did not write.

Scripts that meet such a record set it aside, and the sweep makes a dead letter of it. If Redis
cannot run the script on such data at all, the worker recognizes the error here, and settles the
job, document or result with the code `unusable_record` instead of trying forever.
"""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

from batchmill.producer.store.connection import is_server_fault


def is_unusable_record(error: RedisError) -> bool:
    """Return whether the stored data is at fault, not the server, so that waiting is no help."""
    return isinstance(error, ResponseError) and not is_server_fault(error)
