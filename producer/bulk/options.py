"""What a bulk run is asked to do, and the counts that show its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from batchmill.producer.job.batch import BatchRequest

from .lines import LineSettings


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """What to run."""

    input_path: Path
    output_path: Path
    errors_path: Path
    lines: LineSettings = field(default_factory=LineSettings)
    #: The template as written, for the run's identity.
    template_text: str = ""
    #: Records submitted and not answered yet, at most.
    max_in_flight: int = 1000
    #: Answer records that ask for the same, without any draw of chance, with one job.
    deduplicate: bool = False
    #: Another name makes another run: its jobs are not those of an earlier one.
    run_id: str = ""
    #: Makes the lines a batch, which tells of its end.
    batch: BatchRequest | None = None


@dataclass(slots=True)
class BulkCounts:
    """How far a run is. All but `resumed` and `total` count this command only."""

    total: int = 0
    #: Records that had an answer or an error before this command began.
    resumed: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    #: Prompt tokens that came from the prefix cache.
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def done(self) -> int:
        """Records that have an answer or an error."""
        return self.resumed + self.completed + self.failed
