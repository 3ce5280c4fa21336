"""The noise of a step's watermarked rows, in the place of their requests' seeds and positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch

#: Row, seed and position.
_Mark = tuple[int, int, int]


def marked_rows(batch: ScheduledBatch) -> list[_Mark]:
    """Return the rows of `batch.request_of_each_row` whose noise is a watermark key's.

    All output tokens of marked requests must be known on the host.
    """
    marks: list[_Mark] = []
    shares = [
        *((each, ()) for each in batch.decodes),
        *((item.request, item.draft_token_ids) for item in batch.chunks if item.needs_sample),
    ]
    row = 0
    for request, drafts in shares:
        if request.watermark is not None:
            noise = request.watermark.of_next(request.output_token_ids, drafts)
            marks += [(row + i, *each) for i, each in enumerate(noise) if each is not None]
        row += 1 + len(drafts)
    return marks


def with_marks(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], marks: list[_Mark]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return seeds and positions, [num_rows] int64, with those of the marked rows replaced."""
    seeds, positions = seeds.copy(), positions.copy()
    rows, marked_seeds, marked_positions = (list(each) for each in zip(*marks, strict=True))
    seeds[rows], positions[rows] = marked_seeds, marked_positions
    return seeds, positions
