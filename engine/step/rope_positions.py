"""The positions by which a step's tokens are rotated, in models that see pictures as grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.request.request import Request


def fill_rope_positions(
    target: NDArray[np.int64], request: Request, positions: NDArray[np.int64]
) -> None:
    """Write the time, row and column of some tokens of a request.

    Args:
        target: [3, num_tokens], written.
        request: The request.
        positions: [num_tokens], consecutive positions in its sequence.
    """
    media = request.media
    if media is None or media.rope_positions is None:
        target[:] = positions
        return
    num_prompt = media.rope_positions.shape[1]
    in_prompt = max(0, min(len(positions), num_prompt - int(positions[0])))
    start = int(positions[0])
    target[:, :in_prompt] = media.rope_positions[:, start : start + in_prompt]
    target[:, in_prompt:] = positions[in_prompt:] + media.position_offset
