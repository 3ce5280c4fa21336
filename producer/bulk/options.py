"""`BulkOptions`, the options of a bulk run, and `BulkCounts`, its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from batchmill.producer.job.batch import BatchRequest

from .lines import LineSettings


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """Options of a bulk run."""

    input_path: Path
    output_path: Path
    errors_path: Path
    lines: LineSettings = field(default_factory=LineSettings)
    #: The text of the template, for the run's identity.
    template_text: str = ""
    #: Most records that are submitted and not finished.
    max_in_flight: int = 1000
    #: Run one job for all records that ask for the same deterministic output.
    deduplicate: bool = False
    #: Another name makes another run, which does not share jobs with earlier ones.
    run_id: str = ""
    #: Makes the lines a batch, which reports its end.
    batch: BatchRequest | None = None


@dataclass(slots=True)
class BulkCounts:
    """Progress of a run. All but `resumed` and `total` count this command only."""

    total: int = 0
    #: Records that had a result or an error before this command began.
    resumed: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    #: Prompt tokens that came from the prefix cache.
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def done(self) -> int:
        """Records that have a result or an error."""
        return self.resumed + self.completed + self.failed
