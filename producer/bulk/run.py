"""`BulkRun`: a file of prompts in, a file of results out, in constant memory, resumable.

The output and error files are the only state of a run. The idempotency key of each record's job is
made of the run's identity and the record's place, so a job that was submitted before a crash is
found again and not generated twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from batchmill.producer.errors import BulkFileError
from batchmill.producer.job.line import BulkLine
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore

from .batch import BulkBatch
from .in_flight import InFlight
from .lines import read_line
from .options import BulkCounts, BulkOptions
from .output import DoneLines, DurableLines
from .prefix_order import with_prefixes_adjacent
from .records import count_records, csv_columns, digest_of, is_csv, read_records

#: Seconds that each round of the loop waits for a job to end.
_WAIT_S = 0.5


class BulkRun:
    """One run of `batchmill bulk`. Owns its files while it runs; the jobs outlive it."""

    def __init__(self, store: JobStore, settings: ProducerSettings, options: BulkOptions) -> None:
        self._store = store
        self._settings = settings
        self._options = options
        self.counts = BulkCounts()
        #: The batch of the lines, once it is open.
        self.batch_id: str | None = None

    def run(self, on_progress: Callable[[BulkCounts], None]) -> BulkCounts:
        """Submit the records without a result, and return when every record has one.

        Args:
            on_progress: called about twice per second and after each group of results.

        Raises:
            BulkFileError: a file cannot be used.
            JobRejected: the batch's webhook is not allowed, or the batch has other content.
            redis.exceptions.ConnectionError: the broker has been away for half a minute. As after
                a crash or Ctrl-C, the same command resumes from there.
        """
        _check_paths(self._options)
        digest = digest_of(self._options.input_path)
        _check_columns(self._options)
        self.counts.total = count_records(self._options.input_path)
        identity = _identity(self._options, digest, self._settings)
        with ExitStack() as stack:
            output = stack.enter_context(DurableLines(self._options.output_path))
            errors = stack.enter_context(DurableLines(self._options.errors_path))
            done = DoneLines(self.counts.total)
            for file in (output, errors):
                self.counts.resumed += file.recover(identity, done)
            batch = BulkBatch.open(
                self._store,
                self._settings,
                self._options.batch,
                identity=f"{identity}\0{self._options.run_id}",
                num_lines=self.counts.total,
                num_done=self.counts.resumed,
            )
            self.batch_id = None if batch is None else batch.id
            in_flight = InFlight(
                *(self._store, self._settings, self._options, identity),
                *(output, errors, self.counts, batch),
            )
            stack.enter_context(in_flight)
            self._run_window(in_flight, self._lines(done), on_progress)
        on_progress(self.counts)
        return self.counts

    def _run_window(
        self,
        in_flight: InFlight,
        lines: Iterator[BulkLine],
        on_progress: Callable[[BulkCounts], None],
    ) -> None:
        on_progress(self.counts)
        while in_flight.send(lines):
            in_flight.collect(_WAIT_S)
            on_progress(self.counts)

    def _lines(self, done: DoneLines) -> Iterator[BulkLine]:
        settings = self._options.lines
        records = read_records(self._options.input_path)
        todo = (read_line(record, settings) for record in records if record.number not in done)
        return with_prefixes_adjacent(todo)


def _check_paths(options: BulkOptions) -> None:
    paths = [options.input_path, options.output_path, options.errors_path]
    if len({path.resolve() for path in paths}) < len(paths):
        raise BulkFileError("the input, the output and the error file must be three files")


def _check_columns(options: BulkOptions) -> None:
    """Reject a template that no row of a table can fill, before every row fails."""
    template = options.lines.template
    if template is None or not is_csv(options.input_path):
        return
    columns = csv_columns(options.input_path)
    missing = [name for name in template.columns if name not in columns]
    if missing:
        raise BulkFileError(
            f"the template asks for {', '.join(missing)}; {options.input_path} has the columns "
            f"{', '.join(columns)}"
        )


def _identity(options: BulkOptions, digest: str, settings: ProducerSettings) -> str:
    """Return a digest of the whole input: results of a different input must not count here."""
    lines = options.lines
    content: dict[str, Any] = {
        "input": digest,
        "template": options.template_text if lines.template is not None else None,
        "as_chat": lines.as_chat,
        "system": lines.system,
        "model": lines.model or settings.served_name,
        "defaults": dict(lines.defaults),
    }
    if lines.tags:  # left out if empty: keeps the identity of runs from before tags existed
        content["tags"] = lines.tags
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
