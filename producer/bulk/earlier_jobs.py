"""`EarlierJobs`: the jobs that lines of a run got when it was given with another `--model`.

The key of a line's job does not depend on the model, so a later command meets the earlier job as a
conflict, cancels it, and submits its own. A job that is cancelled here gives up its key in the same
moment, so a command that is killed next leaves nothing that a later one could take for a result.
A job that has ended keeps its key, and the next one gets a key made of that key: a line's jobs thus
form a chain, of which at most one is to end, the last one that was wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from batchmill.producer.protocol import reads
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import CancelAnswer, CancelStatus, JobState
from batchmill.producer.store.shards import Shards
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS


class EarlierJobs:
    """Cancels the jobs of other models, and finds the key under which a line's job continues."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        #: Jobs that were cancelled.
        self.num_cancelled = 0
        #: Cancelled jobs that were met once; at most as many as a command had in flight.
        self._met: set[str] = set()

    def replace(self, job: NewJob, earlier_id: str) -> NewJob:
        """Cancel the job of another model that has a job's key; return the job to submit next."""
        try:
            answer = self._cancel(earlier_id)
        except CONNECTION_ERRORS:
            return job  # as soon as the broker is back, it meets the same conflict or none
        if answer.status is not CancelStatus.ALREADY_TERMINAL:
            return job
        if answer.state is JobState.CANCELLED and earlier_id not in self._met:
            self._met.add(earlier_id)  # perhaps just now, for another line or by a lost reply
            return job
        return _under(job, _next_key(_key_of(job)))

    def pass_over(self, found: Sequence[tuple[NewJob, str]]) -> list[NewJob | None]:
        """Look at jobs that were found again, for later jobs of another model in their chains.

        Args:
            found: jobs with the ids under which they were found.

        Returns:
            For each, the job to submit in its place because it was cancelled for a later one; None
            if it counts. The later jobs of one that counts are cancelled.

        Raises:
            redis.exceptions.ConnectionError: the broker is away; the same call may be repeated.
        """
        later_keys = [_next_key(_key_of(job)) for job, _ in found]
        places = [(job.tenant, key) for (job, _), key in zip(found, later_keys, strict=True)]
        later_ids = self._shards.job_ids_of_keys(places)
        instead: list[NewJob | None] = [None] * len(found)
        for at, (job, job_id) in enumerate(found):
            if later_ids[at] is None:
                continue
            record = self._shards.of_job(job_id).read(reads.job(job_id))
            if record is None or record.cancel_requested or record.state is JobState.CANCELLED:
                instead[at] = _under(job, later_keys[at])
            else:
                self._cancel_chain(job.tenant, later_keys[at])
        return instead

    def _cancel_chain(self, tenant: str, key: str) -> None:
        while (job_id := self._shards.job_ids_of_keys([(tenant, key)])[0]) is not None:
            self._cancel(job_id)
            key = _next_key(key)

    def _cancel(self, job_id: str) -> CancelAnswer:
        store = self._shards.of_job(job_id)
        answer = store.run(job_calls.cancel(job_id, frees_key=True))
        if answer.status in (CancelStatus.CANCELLED, CancelStatus.CANCELLING):
            self.num_cancelled += 1
        return answer


def _key_of(job: NewJob) -> str:
    assert job.idempotency_key is not None, "every line outside a batch has a key"
    return job.idempotency_key


def _next_key(key: str) -> str:
    return f"bulk-{hashlib.sha256(key.encode()).hexdigest()[:40]}"


def _under(job: NewJob, key: str) -> NewJob:
    """Return a job under another idempotency key, which its document repeats."""
    document = job.document.replace(_key_of(job), key)
    return replace(job, idempotency_key=key, document=document)
