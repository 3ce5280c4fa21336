# Generated from async_batches.py by tests/structure/generate_sync.py: change that file.
"""The client's methods on batches."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterable, Iterator
from typing import Unpack

from batchmill.producer.job.batch import BatchStatus, parse_batch
from batchmill.producer.job.job_fields import BatchFields
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.batches import BatchEntry, joined_batches
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.shards import Shards

from . import batch_verbs
from .batch_intake import BatchLine
from .job_groups import OnRejected


class Batches:
    """Methods of `Client` on batches. The client owns the stores."""

    settings: ProducerSettings
    _url: str
    _shards: Shards

    def create_batch(
        self,
        jobs: Iterable[BatchLine],
        /,
        *,
        on_rejected: OnRejected | None = None,
        **fields: Unpack[BatchFields],
    ) -> BatchStatus:
        """Submit jobs as one batch: with one state, counts, and one webhook at its end.

        Works through `jobs` in constant memory, waits while a queue is full, and returns when all
        are submitted. Called again with the same `idempotency_key` after any interruption, it
        continues the same batch, and submits no line twice.

        Args:
            jobs: prompts, `GenerationJob` values, mappings (which may have a `custom_id`), or
                lines of a bulk file.
            on_rejected: called with the index and the error of each rejected job, which counts as
                failed. None fails the batch at the first, and cancels the jobs submitted so far.
            **fields: the fields of a `BatchRequest`: `webhook`, `webhook_events_filter`,
                `webhook_secret`, `metadata`, `ttl_s`, `idempotency_key`, `tenant`.

        Raises:
            JobRejected: a field or a job is invalid, or the batch was cancelled meanwhile.
            IdempotencyConflict: the key stands for another batch.
            BrokerUnavailable: the broker does not respond; with an `idempotency_key` the same call
                continues the batch.
        """
        request = parse_batch(fields)
        lines = jobs
        with broker_errors(self._url):
            return batch_verbs.create_batch(
                self._shards, self.settings, lines, request, on_rejected
            )

    def batch(self, batch_id: str) -> BatchStatus:
        """Return the status of a batch.

        Raises:
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            store = self._shards.of_batch(batch_id)
            return batch_verbs.status_of(store, batch_id)

    def batches(self, limit: int = 100) -> builtins.list[BatchStatus]:
        """Return the newest batches, newest first.

        Raises:
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            stores = self._shards.every()
            found = [batch_verbs.newest_batches(store, limit) for store in stores]
        return joined_batches(found, limit)

    def cancel_batch(self, batch_id: str) -> BatchStatus:
        """Cancel the jobs of a batch that have not ended; running ones stop at a checkpoint.

        Returns:
            Its new status: `cancelling` until the running jobs have stopped, or the state in
            which it had already ended.

        Raises:
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            store = self._shards.of_batch(batch_id)
            return batch_verbs.cancel_batch(store, batch_id)

    def batch_results(
        self, batch_id: str, *, timeout_s: float | None = None
    ) -> Iterator[BatchEntry]:
        """Yield the lines of a batch in the order of the input, waiting for the end of each.

        Begins when all lines are submitted, and works in constant memory. Lines that were rejected
        when the batch was created have no job and are left out.

        Args:
            batch_id: the batch.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they continue. Its message has the counts of the
                batch; it and `progress` say when the pending jobs are done, or that no worker
                serves their model.
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        with broker_errors(self._url):
            store = self._shards.of_batch(batch_id)
            results = batch_verbs.batch_results(store, batch_id, timeout_s)
            with contextlib.closing(results) as entries:
                yield from entries
