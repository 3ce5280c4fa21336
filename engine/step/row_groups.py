"""Which rows of a step belong to which owner: an adapter, or a steering vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .upload import Uploader

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowGroup(Generic[T]):
    """One owner's part of a step.

    Attributes:
        owner: Whose rows they are.
        token_rows: [num_rows] int64, ascending rows of [num_tokens].
        sample_rows: [num_rows] int64, ascending rows of [num_samples]: the last layer computes only
            these after its attention.
    """

    owner: T
    token_rows: Tensor
    sample_rows: Tensor


def group_rows(
    owners: Sequence[T | None],
    seqs: NDArray[np.int64],
    sample_rows: NDArray[np.int64],
    uploader: Uploader,
) -> tuple[RowGroup[T], ...]:
    """Group the rows of a step by their owner.

    Args:
        owners: That of each request of the step; None for one without.
        seqs: [num_tokens], index of the request of each token.
        sample_rows: [num_samples], as in `StepInputs`.
        uploader: Copies the rows to the device.
    """
    used = list(dict.fromkeys(each for each in owners if each is not None))
    if not used:
        return ()
    numbers = {owner: number for number, owner in enumerate(used)}
    of_seq = np.array([-1 if each is None else numbers[each] for each in owners])
    of_token = of_seq[seqs]
    of_sample = of_token[sample_rows]
    arrays = [
        np.flatnonzero(rows == number)
        for number in range(len(used))
        for rows in (of_token, of_sample)
    ]
    tensors = uploader.upload(*arrays)
    return tuple(
        RowGroup(owner, tensors[2 * number], tensors[2 * number + 1])
        for number, owner in enumerate(used)
    )
