"""Adds steering vectors to the hidden states of the rows that have one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from batchmill.engine.request.steering import Steering
from batchmill.engine.step.row_groups import RowGroup


def steer(x: Tensor, groups: Iterable[RowGroup[Steering]], layer: int, *, of_samples: bool) -> None:
    """Add to a layer's output the directions of the rows that are steered there, in place.

    Args:
        x: [num_rows, hidden], which the residual is added to.
        groups: The rows of each steering of the step.
        layer: Whose output it is.
        of_samples: Whether its rows are those that sample, not those of all tokens.

    Source: activation addition, Turner et al. 2023; representation engineering, Zou et al. 2023; at
    the place where llama.cpp adds its control vectors.
    """
    for each in groups:
        vector = each.owner.vectors.get(layer)
        rows = each.sample_rows if of_samples else each.token_rows
        if vector is not None and len(rows):
            x.index_add_(0, rows, vector.expand(len(rows), -1), alpha=each.owner.strength)
