"""`BulkOptions`, the options of a bulk run, and `BulkCounts`, its progress."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchmill.producer.files.record import InputOptions
from batchmill.producer.job.batch import BatchRequest

from .lines import LineSettings
from .usage import Tokens


@dataclass(frozen=True, slots=True)
class TableOptions:
    """A table of all results, in the order of the input."""

    path: Path
    #: `csv`, `tsv`, `xlsx`, `parquet`, or `jsonl`: the lines of the results and errors in order.
    format: str
    #: Write texts that a spreadsheet would compute as they are.
    keeps_formulas: bool = False


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """Options of a bulk run."""

    input_path: Path
    output_path: Path
    errors_path: Path
    lines: LineSettings = field(default_factory=LineSettings)
    #: How the input is read.
    reading: InputOptions = field(default_factory=InputOptions)
    #: Made of the output and the error file when all lines are done.
    table: TableOptions | None = None
    #: Most records that are submitted and not finished.
    max_in_flight: int = 1000
    #: Run one job for all records that ask for the same deterministic output.
    deduplicate: bool = False
    #: Another name makes another run, which does not share jobs with earlier ones.
    run_id: str = ""
    #: Makes the lines a batch, which reports its end.
    batch: BatchRequest | None = None
    #: Records of the input that are used; None is all.
    max_records: int | None = None
    #: Send failed lines again.
    retry_failed: bool = False
    #: Seconds after which the command stops; its jobs continue.
    timeout_s: float | None = None


@dataclass(slots=True)
class BulkCounts:
    """Progress of a run. All but `resumed…`, `total` and `usage` count this command only."""

    total: int = 0
    #: Records that had a result or an error before this command began.
    resumed: int = 0
    #: Those among them that had an error.
    resumed_failed: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    #: Prompt tokens that came from the prefix cache.
    cached_tokens: int = 0
    output_tokens: int = 0
    #: Tokens of all results of the run, per model.
    usage: dict[str, Tokens] = field(default_factory=dict)
    #: Lines that wait for their jobs, per queue and model.
    waiting: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Jobs of an earlier `--model` that were cancelled.
    replaced: int = 0

    @property
    def done(self) -> int:
        """Records that have a result or an error."""
        return self.resumed + self.completed + self.failed

    @property
    def all_failed(self) -> int:
        """Records that have an error, whenever they got it."""
        return self.resumed_failed + self.failed

    def add_usage(self, model: str, usage: dict[str, Any]) -> None:
        """Add the tokens of a result."""
        self.usage.setdefault(model, Tokens()).add(usage)
