"""`BulkRun`: a file of prompts in, a file of results out, in constant memory, resumable.

The output and error files are the only state of a run. The idempotency key of each line's job is
made of the run's identity and the line's place, so a job that was submitted before a crash is found
again and not generated twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from batchmill.producer.errors import BulkFileError, ResultTimeout
from batchmill.producer.files.record import Record
from batchmill.producer.files.source import RecordFile
from batchmill.producer.job.line import BulkLine
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.shards import Shards

from .batch import BulkBatch
from .in_flight import InFlight
from .journal import Journal
from .lines import check_template, read_line, with_media
from .options import BulkCounts, BulkOptions
from .output import DoneLines
from .prefix_order import with_prefixes_adjacent
from .result_table import ResultTable

#: Seconds that each round of the loop waits for a job to end.
_WAIT_S = 0.5


class BulkRun:
    """One run of `batchmill bulk`. Owns its files while it runs; the jobs outlive it."""

    def __init__(self, shards: Shards, settings: ProducerSettings, options: BulkOptions) -> None:
        self._shards = shards
        self._settings = settings
        self._options = options
        self.counts = BulkCounts()
        #: The batch of the lines, once it is open.
        self.batch_id: str | None = None
        #: The table, once the run is complete; None if none was asked for.
        self.table: ResultTable | None = None

    def run(
        self, on_progress: Callable[[BulkCounts], None], on_note: Callable[[str], None]
    ) -> BulkCounts:
        """Submit the lines without a result, and return when every line has one.

        Args:
            on_progress: called about twice per second and after each group of results.
            on_note: called with what a user should know about the input.

        Raises:
            BulkFileError: a file cannot be used.
            JobRejected: the batch's webhook is not allowed, or the batch has other content.
            ResultTimeout: the run's time is over. The same command resumes from there.
            redis.exceptions.ConnectionError: the broker has been away for half a minute. As after
                a crash or Ctrl-C, the same command resumes from there.
        """
        options = self._options
        _check_paths(options)
        source = RecordFile(options.input_path, options.reading)
        options = replace(options, lines=with_media(source, options.lines))
        self._options = options
        check_template(source, options.lines)
        for text in source.notes:
            on_note(f"note: {text}")
        num_lines = source.num_records * options.lines.num_lines_per_record
        num_records = source.num_records
        if options.max_records is not None:
            num_records = min(num_records, options.max_records)
        self.counts.total = num_records * options.lines.num_lines_per_record
        identity = run_identity(options, source.digest(), self._settings)
        if options.table is not None:
            self.table = ResultTable(options, source, num_records)
        with Journal(options, num_lines) as journal:
            journal.recover(identity, self.counts)
            if self.table is not None:
                self.table.check(journal)
            self._work(identity, source, journal, on_progress)
            if self.table is not None:
                journal.output.sync()
                journal.errors.sync()
                self.table.write(identity, journal)
        on_progress(self.counts)
        return self.counts

    def _work(
        self,
        identity: str,
        source: RecordFile,
        journal: Journal,
        on_progress: Callable[[BulkCounts], None],
    ) -> None:
        batch = BulkBatch.open(
            self._shards,
            self._settings,
            self._options.batch,
            identity=f"{identity}\0{self._options.run_id}",
            num_lines=self.counts.total,
            num_done=self.counts.resumed,
        )
        self.batch_id = None if batch is None else batch.id
        with InFlight(
            *(self._shards, self._settings, self._options, identity, journal, self.counts, batch)
        ) as in_flight:
            self._run_window(in_flight, self._lines(source, journal.done), on_progress)

    def _run_window(
        self,
        in_flight: InFlight,
        lines: Iterator[BulkLine],
        on_progress: Callable[[BulkCounts], None],
    ) -> None:
        timeout_s = self._options.timeout_s
        until = None if timeout_s is None else time.monotonic() + timeout_s
        on_progress(self.counts)
        while in_flight.send(lines):
            if until is not None and time.monotonic() >= until:
                raise ResultTimeout(
                    f"{self.counts.done} of {self.counts.total} lines are done after "
                    f"{timeout_s:g} s; jobs in flight continue, and the same command collects "
                    "their results"
                )
            in_flight.collect(_WAIT_S)
            on_progress(self.counts)

    def _lines(self, source: RecordFile, done: DoneLines) -> Iterator[BulkLine]:
        records = islice(source.records(), self._options.max_records)
        todo = (line for record in records for line in self._lines_of(record, done))
        return with_prefixes_adjacent(todo)

    def _lines_of(self, record: Record, done: DoneLines) -> Iterator[BulkLine]:
        settings = self._options.lines
        first = (record.number - 1) * settings.num_lines_per_record + 1
        for place in range(settings.num_lines_per_record):
            if first + place not in done:
                yield read_line(record, settings, place)


def _check_paths(options: BulkOptions) -> None:
    paths = [options.input_path, options.output_path, options.errors_path]
    if options.table is not None:
        paths.append(options.table.path)
    if len({path.resolve() for path in paths}) < len(paths):
        raise BulkFileError("the input, the output and the error file must be three files")


def run_identity(options: BulkOptions, digest: str, settings: ProducerSettings) -> str:
    """Return a digest of the whole input: results of a different input must not count here.

    `--model` is not part of it: a run whose lines wait for a model that nobody serves continues
    with another. The journal compares the models of the results instead.
    """
    lines = options.lines
    first = lines.prompts[0] if lines.prompts else None
    content: dict[str, Any] = {
        "input": digest,
        "template": None if first is None else first.text,
        "as_chat": first is not None and first.is_chat,
        "system": None if first is None else first.system,
        "model": settings.served_name,
        "defaults": dict(lines.defaults),
    }
    others = [[prompt.name, prompt.text, prompt.is_jinja] for prompt in lines.prompts]
    options_in_use = (
        ("prompts", others if len(others) > 1 or (first is not None and first.is_jinja) else []),
        ("decision", None if first is None else first.decision),
        ("reading", options.reading.content),
        ("ignored", sorted(lines.ignored)),
        ("tags", lines.tags),
        ("media", [dict(prompt.media) for prompt in lines.prompts if prompt.media]),
        ("embeds", any(prompt.embeds for prompt in lines.prompts)),
    )
    # Left out if empty: keeps the identity of runs from before they existed.
    content |= {name: value for name, value in options_in_use if value}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
