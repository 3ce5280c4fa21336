"""Which rows of a step belong to which LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from batchmill.kernels.ops.lora import LoraWeights

from .upload import Uploader

if TYPE_CHECKING:
    from batchmill.engine.request.adapter import Adapter


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """One adapter's part of a step.

    Attributes:
        weights: The adapter's matrices.
        token_rows: [num_rows] int64, ascending rows of [num_tokens].
        sample_rows: [num_rows] int64, ascending rows of [num_samples]: the last layer computes only
            these after its attention.
    """

    weights: LoraWeights
    token_rows: Tensor
    sample_rows: Tensor


def group_rows(
    adapters: Sequence[Adapter | None],
    seqs: NDArray[np.int64],
    sample_rows: NDArray[np.int64],
    uploader: Uploader,
) -> tuple[AdapterRows, ...]:
    """Group the rows of a step by adapter.

    Args:
        adapters: That of each request of the step; None for one without.
        seqs: [num_tokens], index of the request of each token.
        sample_rows: [num_samples], as in `StepInputs`.
        uploader: Copies the rows to the device.

    Raises:
        ValueError: an adapter is not resident: the scheduler admits no request before it is.
    """
    used = list(dict.fromkeys(each for each in adapters if each is not None))
    if not used:
        return ()
    numbers = {adapter: number for number, adapter in enumerate(used)}
    of_seq = np.array([-1 if each is None else numbers[each] for each in adapters])
    of_token = of_seq[seqs]
    of_sample = of_token[sample_rows]
    arrays = [
        np.flatnonzero(rows == number)
        for number in range(len(used))
        for rows in (of_token, of_sample)
    ]
    tensors = uploader.upload(*arrays)
    return tuple(
        AdapterRows(_weights(adapter), tensors[2 * number], tensors[2 * number + 1])
        for number, adapter in enumerate(used)
    )


def _weights(adapter: Adapter) -> LoraWeights:
    if adapter.weights is None:
        raise ValueError(f"adapter {adapter.digest} is not resident: do not run a step with it")
    return adapter.weights
