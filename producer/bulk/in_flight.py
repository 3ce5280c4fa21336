"""`InFlight`: the records of a bulk run that are submitted and not finished."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from batchmill.producer.client.job_groups import FULL_PAUSE_S, MAX_GROUP_CHARS, MAX_GROUP_JOBS
from batchmill.producer.errors import JobRejected, JobUnfinished, QueueFull, UnknownJob
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import BulkLine, LineKind
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE, EndedJob, chunks, ended_jobs
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.reply_errors import accepted_id
from batchmill.producer.store.submission import fingerprint, prepare
from batchmill.producer.watch.many_jobs import EndWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, Outage

from .output import DurableLines, line_id
from .result_lines import error_line, result_line

if TYPE_CHECKING:
    from .batch import BulkBatch
    from .options import BulkCounts, BulkOptions


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The part of a record that is kept while its job runs: not its prompt."""

    number: int
    custom_id: str
    kind: LineKind


class InFlight:
    """Owns the records in flight, at most `max_in_flight`, and writes their results.

    Invariant: each record that was taken from the input is held back (the queue was full), waits
    for its job, or has its line in one of the two files.
    """

    def __init__(
        self,
        store: JobStore,
        settings: ProducerSettings,
        options: BulkOptions,
        identity: str,
        output: DurableLines,
        errors: DurableLines,
        counts: BulkCounts,
        batch: BulkBatch | None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._options = options
        self._identity = identity
        self._output = output
        self._errors = errors
        self._counts = counts
        self._batch = batch
        self._is_input_over = False
        self._watch = EndWatch(store)
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
        num_chars = 0
        while len(batch) < room and num_chars < MAX_GROUP_CHARS:
            item = self._held.popleft() if self._held else self._prepare_next(lines)
            if item is None:
                break
            batch.append(item)
            num_chars += len(item[1].document)
        return batch

    def _prepare_next(self, lines: Iterator[BulkLine]) -> tuple[_Waiting, NewJob] | None:
        """Return the next record that can be submitted; write the others to the error file."""
        for line in lines:
            waiting = _Waiting(line.number, line.custom_id, line.kind)
            try:
                if line.job is None:
                    raise line.problem or JobRejected("the line has no job")
                return waiting, self._prepare(line.job, line)
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
            place = f"same\0{fingerprint(job)}"
        if self._batch is not None:  # jobs of a run without a batch must not count for this one
            place = f"{self._batch.id}\0{place}"
        name = f"{self._identity}\0{self._options.run_id}\0{place}".encode()
        key = f"bulk-{hashlib.sha256(name).hexdigest()[:40]}"
        prepared = prepare(job.model_copy(update={"idempotency_key": key}), self._settings)
        return prepared if self._batch is None else self._batch.with_place(prepared, line)

    def _submit(self, batch: list[tuple[_Waiting, NewJob]]) -> bool:
        """Submit records; return False if some of them could not be accepted now."""
        try:
            replies = self._store.run_all([job_calls.submit(job) for _, job in batch])
        except CONNECTION_ERRORS as error:
            self._hold(batch, self._outage.pause_s(error))
            return False
        self._outage.end()
        held: list[tuple[_Waiting, NewJob]] = []
        new_ids = []
        for (waiting, job), reply in zip(batch, replies, strict=True):
            try:
                job_id = accepted_id(job, reply)
            except QueueFull:
                held.append((waiting, job))
            except JobRejected as error:
                self._fail(waiting, error.code, str(error))
            else:
                if job_id not in self._waiting:
                    self._waiting[job_id] = []
                    new_ids.append(job_id)
                self._waiting[job_id].append(waiting)
                self._num_waiting += 1
        self._watch.add(new_ids)
        if held:
            self._hold(held, FULL_PAUSE_S)
        return not held

    def _hold(self, batch: list[tuple[_Waiting, NewJob]], pause_s: float) -> None:
        self._held.extendleft(reversed(batch))
        self._held_until = time.monotonic() + pause_s

    def _load(self, job_ids: Sequence[str]) -> list[EndedJob]:
        while True:
            try:
                return self._store.read(ended_jobs(job_ids))
            except CONNECTION_ERRORS as error:
                time.sleep(self._outage.pause_s(error))

    def _write(self, ended: EndedJob) -> None:
        for waiting in self._waiting.pop(ended.id):
            self._num_waiting -= 1
            try:
                result = ended.result()
            except JobUnfinished as error:
                self._fail(waiting, error.code, str(error))
            except UnknownJob as error:
                self._fail(waiting, "unknown_job", str(error))
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

    def _fail(self, waiting: _Waiting, code: str, message: str) -> None:
        name = line_id(self._identity, waiting.number)
        self._errors.append(error_line(name, waiting.custom_id, code, message))
        self._counts.failed += 1
