"""`Journal`: the output and the error file of a run, which are its whole state."""

from __future__ import annotations

from typing import Any, Self

from batchmill.producer.errors import BulkFileError

from .options import BulkCounts, BulkOptions
from .output import DoneLines, DurableLines


class Journal:
    """Owns both files while it is open, and knows which lines are done."""

    def __init__(self, options: BulkOptions, num_lines: int) -> None:
        """Open or create the files.

        Args:
            options: of the run.
            num_lines: that the whole input has.

        Raises:
            BulkFileError: a file cannot be used.
        """
        self._options = options
        self.output = DurableLines(options.output_path)
        try:
            self.errors = DurableLines(options.errors_path)
        except BulkFileError:
            self.output.close()
            raise
        self.done = DoneLines(num_lines)
        #: Lines that had an error, and are sent again.
        self.retried = DoneLines(num_lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.output.close()
        finally:
            self.errors.close()

    def recover(self, identity: str, counts: BulkCounts) -> None:
        """Find the lines that are done, and count those within the run's limit.

        Raises:
            BulkFileError: a file holds something else, or results of another run or model.
        """

        def note_result(line: dict[str, Any], number: int) -> None:
            body = (line.get("response") or {}).get("body") or {}
            model = str(body.get("model", ""))
            wanted = self._options.lines.model
            if wanted is not None and model != wanted:
                raise BulkFileError(
                    f"{self.output.path}, line {number}: is of the model {model}, and --model is "
                    f"{wanted}; give another output, or leave --model out"
                )
            counts.add_usage(model, body.get("usage") or {})

        if self._options.retry_failed:
            self.errors.recover(identity, self.retried)
            self.output.recover(identity, self.done, note_result)
            self.errors.clear()
        else:
            self.output.recover(identity, self.done, note_result)
            counts.resumed_failed = self.errors.recover(identity, self.done)
        counts.resumed = self.done.count_up_to(counts.total)
