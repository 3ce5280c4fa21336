"""Retrying a dead letter: as a job, a message or a webhook event."""

from __future__ import annotations

from typing import assert_never

from batchmill.producer.errors import BatchmillError, JobRejected
from batchmill.producer.job.validation import parse_document
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.outbox import RedeliverStatus
from batchmill.producer.protocol.records import DeadLetter, DeadLetterKind
from batchmill.producer.protocol.replies import RetryStatus
from batchmill.producer.settings import ProducerSettings

from .every_shard import EveryShard
from .job_store import JobStore
from .reply_errors import accepted_id, check_retried
from .submission import prepare, queue_limits


def dead_letters_of_all(shards: EveryShard, *, offset: int, limit: int) -> list[DeadLetter]:
    """Return dead letters of all shards that reply, newest first, after the newest `offset`."""
    if shards.is_alone:
        (only,) = shards.each(lambda store: store.dead_letters(offset=offset, limit=limit))
        return only
    parts = shards.each(lambda store: store.dead_letters(offset=0, limit=offset + limit))
    letters = (letter for part in parts for letter in part)
    return sorted(letters, key=lambda letter: -letter.at_ms)[offset : offset + limit]


def retry_dead_letter(store: JobStore, letter_id: str, settings: ProducerSettings) -> str | None:
    """Retry a dead letter and drop it.

    A job runs again as with `Client.retry`. A letter is kept longer than a record: if the record is
    gone, the job is submitted again, without its deadline and under a new id, because receivers
    know the webhook ids of the old one. A message goes back to its queue, an event to the outbox.

    Returns:
        The id of the job, the queue, or the id of the event; None if the letter does not exist or
        its event has been deleted since.

    Raises:
        JobRejected: the job is no longer accepted, for instance because its queue is full; or
            batchmill did not write the letter.
        WrongState: the job has been retried since.
        KeyMissing, ContentChanged: the letter is sealed and cannot be opened.
    """
    letter = store.dead_letter(letter_id)
    if letter is None:
        return None
    if letter.kind is DeadLetterKind.JOB:
        return _retry_job(store, letter, settings)
    if letter.kind is DeadLetterKind.MESSAGE:
        return _retry_message(store, letter)
    if letter.kind is DeadLetterKind.WEBHOOK:
        status = store.outbox_redeliver(letter.id)
        return None if status is RedeliverStatus.UNKNOWN else letter.id
    if letter.kind is DeadLetterKind.UNUSABLE:
        raise JobRejected(
            f"dead letter {letter_id!r} has fields that batchmill did not write, so nothing can be "
            f"retried; delete it with: batchmill dead-letters drop {letter_id}",
            code="unusable_letter",
        )
    assert_never(letter.kind)


def _retry_job(store: JobStore, letter: DeadLetter, settings: ProducerSettings) -> str:
    reply = store.run(job_calls.retry(letter.id, queue_limits(settings)))
    if reply.status is RetryStatus.UNKNOWN:
        return _submit_again(store, letter, settings)
    check_retried(letter.id, reply)
    return letter.id


def _submit_again(store: JobStore, letter: DeadLetter, settings: ProducerSettings) -> str:
    # With the key, a retry that is repeated after a lost reply is the same job.
    if isinstance(letter.unreadable, BatchmillError):
        raise letter.unreadable
    key = f"dead-letter:{letter.id}:{letter.at_ms}"
    times = {"deadline": None, "not_before": None, "delay_s": None}
    job = parse_document(letter.payload).model_copy(update={**times, "idempotency_key": key})
    prepared = prepare(job, settings)
    job_id = accepted_id(prepared, store.submit(prepared))
    store.dead_letter_drop(letter.id)
    return job_id


def _retry_message(store: JobStore, letter: DeadLetter) -> str:
    if isinstance(letter.unreadable, BatchmillError):
        raise letter.unreadable
    with store.client.pipeline(transaction=True) as pipeline:
        pipeline.lpush(letter.source, letter.payload)
        pipeline.delete(keys.dead(letter.id))
        pipeline.zrem(keys.DEAD, letter.id)
        pipeline.execute()
    return letter.source
