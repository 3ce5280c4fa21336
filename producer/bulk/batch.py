"""`BulkBatch`: the batch that a bulk run makes of its lines if its end is to be reported."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Self

from batchmill.producer.errors import BatchClosed, BulkFileError
from batchmill.producer.job.batch import BatchRequest, BatchState
from batchmill.producer.job.line import BulkLine
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import BatchPlace, NewJob
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.batch_calls import OpenBatch, raise_if_error
from batchmill.producer.store.batches import batches
from batchmill.producer.store.shards import Shards
from batchmill.producer.store.store import Store


class BulkBatch:
    """Gives each line its place in the batch, and seals the batch when all lines are submitted.

    The batch is opened before the first result is written, so a run that has results has its batch.
    """

    def __init__(self, store: Store, batch: OpenBatch, num_lines: int) -> None:
        self._store = store
        self._batch = batch
        self._num_lines = num_lines
        self._is_sealed = False

    @property
    def id(self) -> str:
        """The batch."""
        return self._batch.batch_id

    @classmethod
    def open(
        cls,
        shards: Shards,
        settings: ProducerSettings,
        request: BatchRequest | None,
        *,
        identity: str,
        num_lines: int,
        num_done: int,
    ) -> Self | None:
        """Open the run's batch, or find it again; return None if the run has none.

        Args:
            shards: the brokers; the batch is in one of them.
            settings: for the time to live and the webhooks that are allowed.
            request: the fields of the batch; None for a run without a batch.
            identity: of the run.
            num_lines: of the input.
            num_done: lines that had a result or an error before this command.

        Raises:
            BulkFileError: the run began with a batch and continues without one, or the reverse.
            IdempotencyConflict: the run's batch has other content.
        """
        plain_id = "batch_" + hashlib.sha256(f"bulk\0{identity}".encode()).hexdigest()[:32]
        batch_id = shards.new_batch_id(
            plain_id, settings.served_name, keys.DEFAULT_TENANT, is_keyed=True
        )
        store = shards.of_batch(batch_id)
        known = store.read(batches([batch_id]))[0]
        if request is None:
            if known is not None and known.status is BatchState.VALIDATING:
                raise BulkFileError(
                    "the run began with --webhook, which waits for its end; give it again, or "
                    f"cancel its batch: batchmill batch cancel {batch_id}"
                )
            return None
        if known is None and num_done:
            raise BulkFileError(
                f"{num_done} lines have results, but the run has no batch: it began without "
                "--webhook, under another --run-id, or too long ago; give it without --webhook"
            )
        opened = raise_if_error(
            store.run_confirmed(batch_calls.create(request, settings, batch_id))
        )
        return cls(store, opened, num_lines)

    def with_place(self, job: NewJob, line: BulkLine) -> NewJob:
        """Return a line's job as a job of the batch."""
        place = BatchPlace(self.id, line.number - 1, line.custom_id, line.kind.value)
        return replace(job, batch=place)

    def seal(self) -> None:
        """Declare that all lines are submitted. Repeated calls do nothing.

        Raises:
            redis.exceptions.ConnectionError: try again.
        """
        if self._is_sealed:
            return
        error = self._store.run_confirmed(batch_calls.seal(self.id, self._num_lines))
        if error is not None and not isinstance(error, BatchClosed):
            raise error
        self._is_sealed = True  # a cancelled batch has reported its own end
