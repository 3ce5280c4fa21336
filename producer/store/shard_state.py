"""What operators see of each shard, and the settings of theirs that every shard must have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.replies import JobState

from .job_store import JobStore

_UNFINISHED: Final = (JobState.QUEUED, JobState.IN_PROGRESS)
#: Hashes of operators: weights and limits of tenants, API keys, pauses, secrets of receivers,
#: endpoints that get nothing.
_SETTINGS: Final = (
    *(
        keys.TENANTS,
        keys.API_KEYS,
        keys.ADAPTERS,
        keys.STEERING_VECTORS,
        keys.PAUSED,
        keys.RECEIVER_SECRETS,
        keys.ENDPOINTS_DISABLED,
    ),
)
_RECEIVERS: Final = keys.receivers("*")
_SCAN_KEYS: Final = 1000
_PAGE_BATCHES: Final = 1000
#: None is a batch whose record is gone.
_ENDED_BATCHES: Final = (None, b"completed", b"failed", b"cancelled", b"expired")


@dataclass(frozen=True, slots=True)
class ShardState:
    """What a shard still has to do, and what it keeps."""

    waiting: int
    in_progress: int
    #: Documents and plain Celery tasks that were taken and are no jobs yet.
    arriving: int
    #: Batches that have not ended.
    batches: int
    #: Webhook events that wait for delivery.
    webhooks: int
    #: Ended jobs whose results can be read.
    kept: int
    #: Uploaded files of the gateway whose records are here.
    files: int

    @property
    def is_drained(self) -> bool:
        """Whether no work is left; results may still be kept."""
        return not (
            self.waiting or self.in_progress or self.arriving or self.batches or self.webhooks
        )


def read_shard_state(store: JobStore) -> ShardState:
    """Read the state of a shard.

    Raises:
        redis.exceptions.RedisError: it did not reply.
    """
    batches, start = 0, 0
    while page := store.read(_batch_ids(start)):
        batches += sum(state not in _ENDED_BATCHES for state in store.read(_batch_states(page)))
        start += len(page)
    return replace(store.read(_state_without_batches()), batches=batches)


def _batch_ids(start: int) -> Read[list[str]]:
    """Read a page of the ids of batches."""
    return Read(
        lambda pipeline: pipeline.zrange(keys.BATCHES, start, start + _PAGE_BATCHES - 1),
        lambda replies: [batch_id.decode(errors="replace") for batch_id in replies[0]],
    )


def _batch_states(batch_ids: Sequence[str]) -> Read[list[Any]]:
    """Read the states of batches; a key that batchmill did not write has none.

    Not by SORT, which users of Redis without dangerous commands may not call.
    """

    def queue(pipeline: Any) -> None:
        for batch_id in batch_ids:
            pipeline.hget(keys.batch(batch_id), "state")

    return Read(
        queue, lambda replies: [stored(reply, None) for reply in replies], keeps_errors=True
    )


def _state_without_batches() -> Read[ShardState]:

    def queue(pipeline: Any) -> None:
        for state in _UNFINISHED:
            pipeline.zcard(keys.state_index(state.value))
        for name in (keys.INBOX, keys.INBOX_ARRIVED):
            pipeline.llen(name)
        for name in (keys.INBOX_TAKEN, keys.TASKS_TAKEN, keys.CELERY_ENDS):
            pipeline.zcard(name)
        for name in (keys.OUTBOX, keys.EXPIRING, keys.FILES_EXPIRING):
            pipeline.zcard(name)

    def parse(replies: list[Any]) -> ShardState:
        numbers = [int(stored(reply, 0)) for reply in replies]
        waiting, in_progress, *arriving, webhooks, kept, files = numbers
        return ShardState(waiting, in_progress, sum(arriving), 0, webhooks, kept, files)

    return Read(queue, parse, keeps_errors=True)


def copy_settings(source: JobStore, target: JobStore) -> int:
    """Give a shard the operator's settings of another one, instead of its own.

    Returns:
        The number of keys that were copied.

    Raises:
        redis.exceptions.RedisError: one of them did not reply.
    """
    names = [name.encode() for name in _SETTINGS]
    names += _receiver_keys(source)
    with target.client.pipeline(transaction=True) as pipeline:
        for name in {*names, *_receiver_keys(target)}:
            pipeline.delete(name)
        pipeline.delete(keys.WINDOW)
        num_copied = 0
        for name in names:
            fields: Any = source.client.hgetall(name)
            if fields:
                pipeline.hset(name, mapping=fields)
                num_copied += 1
        window: Any = source.client.get(keys.WINDOW)
        if window is not None:
            pipeline.set(keys.WINDOW, window)
            num_copied += 1
        pipeline.execute()
    return num_copied


def _receiver_keys(store: JobStore) -> list[bytes]:
    return list(store.client.scan_iter(match=_RECEIVERS, count=_SCAN_KEYS))
