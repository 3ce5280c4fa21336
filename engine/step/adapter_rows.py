"""Which rows of a step belong to which LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from batchmill.kernels.ops.lora import LoraWeights

from .row_groups import RowGroup, group_rows
from .upload import Uploader

if TYPE_CHECKING:
    from batchmill.engine.request.adapter import Adapter

#: One adapter's part of a step: its matrices are the owner.
AdapterRows: TypeAlias = RowGroup[LoraWeights]


def group_adapter_rows(
    adapters: Sequence[Adapter | None],
    seqs: NDArray[np.int64],
    sample_rows: NDArray[np.int64],
    uploader: Uploader,
) -> tuple[AdapterRows, ...]:
    """Group the rows of a step by adapter; see `group_rows`.

    Raises:
        ValueError: an adapter is not resident: the scheduler admits no request before it is.
    """
    groups = group_rows(adapters, seqs, sample_rows, uploader)
    return tuple(
        RowGroup(_weights(each.owner), each.token_rows, each.sample_rows) for each in groups
    )


def _weights(adapter: Adapter) -> LoraWeights:
    if adapter.weights is None:
        raise ValueError(f"adapter {adapter.digest} is not resident: do not run a step with it")
    return adapter.weights
