"""`InFlight`: the records of a bulk run that are submitted and not finished."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from batchmill.producer.client.job_groups import FULL_PAUSE_S, MAX_GROUP_BYTES, MAX_GROUP_JOBS
from batchmill.producer.errors import (
    BulkFileError,
    ContentChanged,
    IdempotencyConflict,
    JobRejected,
    JobUnfinished,
    PayloadMissing,
    PayloadUnreachable,
    QueueFull,
    UnknownJob,
)
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import BulkLine, LineKind
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.media import MediaChanged
from batchmill.producer.protocol.replies import RetryStatus, SubmitStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE, EndedJob, chunks, ended_jobs
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.shards import Shards
from batchmill.producer.store.submission import fingerprint, prepare, queue_limits
from batchmill.producer.tracing.sending import with_create_span
from batchmill.producer.watch.fleet_watch import FleetWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, Outage

from .earlier_jobs import EarlierJobs
from .journal import Journal
from .output import line_id
from .result_lines import error_line, partial_body, result_line

if TYPE_CHECKING:
    from .batch import BulkBatch
    from .options import BulkCounts, BulkOptions


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The part of a record that is kept while its job runs: not its prompt."""

    number: int
    custom_id: str
    kind: LineKind
    #: Whether it had an error before: its job runs again if it ended without a completion.
    is_retry: bool
    queue: str = ""
    model: str = ""


#: A record, its job, and the id of the job that stands for it.
_Accepted: TypeAlias = tuple[_Waiting, NewJob, str]


class InFlight:
    """Owns the records in flight, at most `max_in_flight`, and writes their results.

    Invariant: each record that was taken from the input is held back (the queue was full), waits
    for its job, or has its line in one of the two files.
    """

    def __init__(
        self,
        shards: Shards,
        settings: ProducerSettings,
        options: BulkOptions,
        identity: str,
        journal: Journal,
        counts: BulkCounts,
        batch: BulkBatch | None,
    ) -> None:
        self._shards = shards
        self._settings = settings
        self._options = options
        self._identity = identity
        self._journal = journal
        self._output = journal.output
        self._errors = journal.errors
        self._counts = counts
        self._batch = batch
        self._earlier = EarlierJobs(shards)
        self._is_input_over = False
        self._watch = FleetWatch(shards)
        self._outage = Outage()
        self._held: deque[tuple[_Waiting, NewJob]] = deque()
        self._held_until = 0.0
        self._waiting: dict[str, list[_Waiting]] = {}
        self._num_waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()

    def send(self, lines: Iterator[BulkLine]) -> bool:
        """Submit as many records as may be in flight; return False when all are finished."""
        if time.monotonic() < self._held_until:
            return True
        while batch := self._next_batch(lines):
            if not self._submit(batch):
                break
        if self._is_input_over and not self._held and not self._seal():
            return True
        return bool(self._held or self._waiting)

    def collect(self, wait_s: float) -> None:
        """Write the results of jobs that have ended; wait at most `wait_s` for the first."""
        pause_s = self._held_until - time.monotonic()
        if not self._waiting and pause_s > 0:
            time.sleep(min(wait_s, pause_s))
        for job_ids in chunks(self._watch.next_ended(wait_s), MAX_ENDS_AT_ONCE):
            for ended in self._load(job_ids):
                self._write(ended)
        self._output.sync_if_due()
        self._errors.sync_if_due()

    def _next_batch(self, lines: Iterator[BulkLine]) -> list[tuple[_Waiting, NewJob]]:
        room = min(self._options.max_in_flight - self._num_waiting, MAX_GROUP_JOBS)
        batch: list[tuple[_Waiting, NewJob]] = []
        num_bytes = 0
        while len(batch) < room and num_bytes < MAX_GROUP_BYTES:
            item = self._held.popleft() if self._held else self._prepare_next(lines)
            if item is None:
                break
            batch.append(item)
            num_bytes += item[1].num_bytes
        return batch

    def _prepare_next(self, lines: Iterator[BulkLine]) -> tuple[_Waiting, NewJob] | None:
        """Return the next record that can be submitted; write the others to the error file."""
        for line in lines:
            is_retry = line.number in self._journal.retried
            waiting = _Waiting(line.number, line.custom_id, line.kind, is_retry)
            try:
                if line.job is None:
                    raise line.problem or JobRejected("the line has no job")
                job = self._prepare(line.job, line)
                return replace(waiting, queue=job.queue, model=job.model), job
            except JobRejected as error:
                self._fail(waiting, error.code, str(error))
        self._is_input_over = True
        return None

    def _seal(self) -> bool:
        """Seal the batch; return False if the broker is away."""
        try:
            if self._batch is not None:
                self._batch.seal()
        except CONNECTION_ERRORS as error:
            self._held_until = time.monotonic() + self._outage.pause_s(error)
            return False
        return True

    def _prepare(self, job: GenerationJob, line: BulkLine) -> NewJob:
        place = f"record\0{line.number}\0{line.custom_id}"
        if self._options.deduplicate and (job.temperature == 0 or job.seed is not None):
            # Without --model, as the keys of all lines: another one replaces the jobs.
            same = job.model_copy(update={"model": line.named_model})
            place = f"same\0{fingerprint(same)}"
        if self._batch is not None:  # jobs of a run without a batch must not count for this one
            place = f"{self._batch.id}\0{place}"
        name = f"{self._identity}\0{self._options.run_id}\0{place}".encode()
        key = f"bulk-{hashlib.sha256(name).hexdigest()[:40]}"
        prepared = prepare(job.model_copy(update={"idempotency_key": key}), self._settings)
        if self._batch is not None:
            prepared = self._batch.with_place(prepared, line)
        return with_create_span(prepared, self._settings)

    def _submit(self, batch: list[tuple[_Waiting, NewJob]]) -> bool:
        """Submit records; return False if some of them could not be accepted now."""
        try:
            replies = self._shards.submit([job for _, job in batch])
        except MediaChanged as error:
            self._drop_changed(batch, error)
            return True  # the others are sent again
        except (*CONNECTION_ERRORS, PayloadUnreachable) as error:
            self._hold(batch, self._outage.pause_s(error))
            return False
        self._outage.end()
        held: list[tuple[_Waiting, NewJob]] = []
        replaced: list[tuple[_Waiting, NewJob]] = []
        accepted: list[_Accepted] = []
        found: list[_Accepted] = []
        for (waiting, job), reply in zip(batch, replies, strict=True):
            try:
                accepted.append((waiting, job, accepted_id(job, reply)))
                if reply.status is SubmitStatus.EXISTING:
                    found.append(accepted[-1])
            except QueueFull:
                held.append((waiting, job))
            except IdempotencyConflict as error:
                replaced.append((waiting, self._replace(waiting, job, error)))
            except JobRejected as error:
                self._fail(waiting, error.code, str(error))
        held += self._pass_over(accepted, found, replaced)
        self._counts.replaced = self._earlier.num_cancelled
        held += self._run_again(accepted)
        self._await(accepted)
        self._held.extendleft(reversed(replaced))
        if held:
            self._hold(held, FULL_PAUSE_S)
        return not held

    def _drop_changed(self, batch: list[tuple[_Waiting, NewJob]], error: MediaChanged) -> None:
        """Fail the lines of a file that was changed since they were read, and keep the others."""
        kept = []
        for waiting, job in batch:
            if any(each.id == error.id for each in job.new_media):
                self._fail(waiting, "invalid_request", str(error))
            else:
                kept.append((waiting, job))
        self._held.extendleft(reversed(kept))

    def _await(self, accepted: list[_Accepted]) -> None:
        new_ids = []
        for waiting, _, job_id in accepted:
            if job_id not in self._waiting:
                self._waiting[job_id] = []
                new_ids.append(job_id)
            self._waiting[job_id].append(waiting)
            self._num_waiting += 1
            self._counts.waiting[waiting.queue, waiting.model] += 1
        self._watch.add(new_ids)

    def _replace(self, waiting: _Waiting, job: NewJob, error: IdempotencyConflict) -> NewJob:
        """Cancel the job of a line that was submitted with another --model; return this one.

        Raises:
            BulkFileError: the job is of a batch, whose lines cannot be replaced.
        """
        if job.batch is not None:
            raise BulkFileError(
                f"{waiting.custom_id} was submitted with another --model, in the batch "
                f"{job.batch.batch_id}: give that one again, or cancel the batch (batchmill batch "
                f"cancel {job.batch.batch_id}) and give another --run-id and output"
            )
        return self._earlier.replace(job, error.job_id)

    def _pass_over(
        self,
        accepted: list[_Accepted],
        found: Sequence[_Accepted],
        replaced: list[tuple[_Waiting, NewJob]],
    ) -> list[tuple[_Waiting, NewJob]]:
        """Replace jobs that were found again but cancelled for those of another --model.

        Returns:
            The records that must wait, because the broker is away; they are not accepted.
        """
        looked_at = [item for item in found if item[1].batch is None]
        if not looked_at:
            return []
        try:
            instead = self._earlier.pass_over([(job, job_id) for _, job, job_id in looked_at])
        except CONNECTION_ERRORS as error:
            time.sleep(self._outage.pause_s(error))
            for item in looked_at:
                accepted.remove(item)
            return [(waiting, job) for waiting, job, _ in looked_at]
        for item, job in zip(looked_at, instead, strict=True):
            if job is not None:
                accepted.remove(item)
                replaced.append((item[0], job))
        return []

    def _run_again(self, accepted: list[_Accepted]) -> list[tuple[_Waiting, NewJob]]:
        """Run the jobs of lines that had an error again; return and remove those that must wait."""
        retries = [item for item in accepted if item[0].is_retry and item[2] not in self._waiting]
        if not retries:
            return []
        limits = queue_limits(self._settings)
        ids = [job_id for _, _, job_id in retries]
        try:
            replies = self._shards.run_each(
                ids, lambda job_id: job_calls.retry(job_id, limits), confirmed=True
            )
        except CONNECTION_ERRORS as error:
            time.sleep(self._outage.pause_s(error))
            late = retries
        else:
            pairs = zip(retries, replies, strict=True)
            late = [item for item, reply in pairs if reply.status is RetryStatus.FULL]
        for item in late:
            accepted.remove(item)
        return [(waiting, job) for waiting, job, _ in late]

    def _hold(self, batch: list[tuple[_Waiting, NewJob]], pause_s: float) -> None:
        self._held.extendleft(reversed(batch))
        self._held_until = time.monotonic() + pause_s

    def _load(self, job_ids: Sequence[str]) -> list[EndedJob]:
        while True:
            try:
                found = self._shards.read_each(job_ids, ended_jobs)
                for ended in found:
                    if isinstance(ended.unreadable, PayloadUnreachable):
                        raise ended.unreadable
            except (*CONNECTION_ERRORS, PayloadUnreachable) as error:
                time.sleep(self._outage.pause_s(error))
            else:
                self._outage.end()
                return found

    def _write(self, ended: EndedJob) -> None:
        for waiting in self._waiting.pop(ended.id):
            self._num_waiting -= 1
            self._counts.waiting[waiting.queue, waiting.model] -= 1
            try:
                result = ended.result()
            except JobUnfinished as error:
                partial = partial_body(waiting.kind, error.result)
                self._fail(waiting, error.code, str(error), partial)
            except UnknownJob as error:
                self._fail(waiting, "unknown_job", str(error))
            except (PayloadMissing, ContentChanged) as error:  # lost for good, of this line only
                self._fail(waiting, error.code, f"job {ended.id}: {error}")
            else:
                name = line_id(self._identity, waiting.number)
                self._output.append(
                    result_line(
                        *(name, waiting.custom_id, waiting.kind, result),
                        finished_at_ms=ended.finished_at_ms,
                    )
                )
                self._counts.completed += 1
                self._counts.prompt_tokens += result.usage.prompt_tokens
                self._counts.cached_tokens += result.usage.prompt_tokens_details.cached_tokens
                self._counts.output_tokens += result.usage.completion_tokens
                self._counts.add_usage(result.model, result.usage.model_dump())

    def _fail(
        self,
        waiting: _Waiting,
        code: str,
        message: str,
        partial: dict[str, Any] | None = None,
    ) -> None:
        name = line_id(self._identity, waiting.number)
        self._errors.append(error_line(name, waiting.custom_id, code, message, partial))
        self._counts.failed += 1
