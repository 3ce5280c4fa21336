"""The progress of a batch: its counts, when it will be done, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchmill.producer import BatchStatus, Client, ProgressSummary
    from batchmill.producer.store.job_store import JobStore

#: Pages of a batch's jobs that one reading looks at, from the first job that has not ended.
_PAGES = 4


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        status: its state and its exact counts.
        jobs: the progress of unfinished jobs; of a long batch, of the next ones only. None once
            none is left.
    """

    status: BatchStatus
    jobs: ProgressSummary | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.status.status.is_terminal

    @property
    def num_unfinished(self) -> int:
        """Jobs that have not ended, of the lines so far."""
        counts = self.status.request_counts
        return max(0, counts.total - counts.completed - counts.failed)

    @property
    def eta_s(self) -> float | None:
        """Seconds until all jobs are done if they generate all they may; None if unknown.

        The jobs of a long batch that were not looked at are assumed to be like those that were.
        """
        if self.has_ended:
            return 0.0
        if self.jobs is None or self.jobs.eta_s is None:
            return None
        num_seen = max(1, self.jobs.total - self.jobs.done - self.jobs.unknown)
        return round(self.jobs.eta_s * max(1.0, self.num_unfinished / num_seen), 1)

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the batch and its progress as JSON values."""
        jobs = self.jobs
        return self.status.model_dump(mode=mode) | {
            "eta_s": self.eta_s,
            "eta_unknown": None if jobs is None else jobs.eta_unknown,
            "waits_for": self._waits_for(),
            "tokens_per_s": 0.0 if jobs is None else jobs.tokens_per_s,
        }

    def describe(self) -> str:
        """Return the progress in words."""
        counts = self.status.request_counts
        parts = [
            f"{self.status.id} {self.status.status.value}",
            f"{counts.completed + counts.failed} of {counts.total} done",
            f"{counts.failed} failed",
        ]
        if self.jobs is not None and self.jobs.tokens_per_s:
            parts.append(f"{self.jobs.tokens_per_s:.1f} tok/s")
        if self.jobs is not None and not self.has_ended:
            known = self.jobs.model_copy(update={"eta_s": self.eta_s})
            parts.append(known.describe_end())
        return ", ".join(parts)

    def _waits_for(self) -> str | None:
        """Return in words why the end is unknown; None if it is known."""
        if self.jobs is None or self.jobs.eta_s is not None:
            return None
        return self.jobs.describe_end().removeprefix("no ETA: ")


class BatchProgressReader:
    """Reads one batch's progress again and again, in a bounded number of round trips."""

    def __init__(self, client: Client, store: JobStore, batch_id: str) -> None:
        self._client = client
        self._store = store
        self._batch_id = batch_id
        #: Place of the last job before which all have ended.
        self._after = -1

    def read(self) -> BatchProgress:
        """Read the progress.

        Raises:
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        status = self._client.batch(self._batch_id)
        job_ids = [] if status.status.is_terminal else self._unfinished()
        if not job_ids and self._after >= 0:
            self._after = -1  # a job that had ended may have been retried
            job_ids = [] if status.status.is_terminal else self._unfinished()
        return BatchProgress(status, self._client.progress_many(job_ids) if job_ids else None)

    def _unfinished(self) -> list[str]:
        """Return the next jobs of the batch that have not ended."""
        from batchmill.producer.protocol import reads
        from batchmill.producer.store.batches import batch_page

        found: list[str] = []
        after, num_pages = self._after, 0
        while num_pages < _PAGES and (page := self._store.read(batch_page(self._batch_id, after))):
            states = self._store.read(reads.job_states([job_id for _, job_id in page]))
            for (index, job_id), state in zip(page, states, strict=True):
                if state is not None and not state.is_terminal:
                    found.append(job_id)
                elif not found:
                    self._after = index
            after = page[-1][0]
            num_pages += bool(found)  # pages of ended jobs are passed over once and for all
        return found
