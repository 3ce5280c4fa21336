"""A sparse linear fit, and the measure of how well it predicts: as in ContextCite.

Cohen-Wang et al. 2024, "ContextCite: Attributing Model Generation to Context".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def lasso(masks: Floats, targets: Floats, *, alpha: float = 0.01, rounds: int = 500) -> Floats:
    """Return weights that predict targets from masks, most of them 0.

    Coordinate descent on standardized columns and targets.

    Args:
        masks: [num_rows, num_columns], 1 where a segment was kept.
        targets: [num_rows].
        alpha: Strength of the L1 penalty, in units of the standardized targets.
        rounds: Passes over the columns at most.

    Returns:
        [num_columns], in units of the targets per segment.
    """
    spread, height = masks.std(axis=0), float(targets.std())
    if height == 0:
        return np.zeros(masks.shape[1])
    safe = np.where(spread > 0, spread, 1.0)
    columns = (masks - masks.mean(axis=0)) / safe
    residual = (targets - targets.mean()) / height
    weights = np.zeros(masks.shape[1])
    for _ in range(rounds):
        largest = 0.0
        for place in range(len(weights)):
            column = columns[:, place]
            pull = float(column @ residual) / len(residual) + weights[place]
            new = float(np.sign(pull)) * max(0.0, abs(pull) - alpha) if spread[place] > 0 else 0.0
            change = new - weights[place]
            if change:
                residual = residual - change * column
                weights[place] = new
            largest = max(largest, abs(change))
        if largest < 1e-7:
            break
    found: Floats = weights * height / safe
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation of two sequences; None if one of them is constant."""
    ranks = [_ranks(np.asarray(each, dtype=np.float64)) for each in (first, second)]
    if any(each.std() == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means = ends - (counts - 1) / 2
    found: Floats = means[inverse]
    return found
