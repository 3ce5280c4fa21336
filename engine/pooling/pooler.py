"""The pooler: takes the final states of pooled requests off the device, and finishes their vectors.

A pooled request is a prompt in the same steps as the requests that generate. Its last chunk needs
no logits; the state of its last token, or the sum over its tokens, goes to the host instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.models.score_head import ScoreHead
from batchmill.engine.request.pooling import (
    VECTOR_TOKEN,
    PooledStates,
    finish_embedding,
    finish_scores,
)
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest


class PooledStep:
    """Owns the states of a launched step until `collect`; on a GPU their copy is queued."""

    def __init__(
        self,
        items: Sequence[ScheduledRequest],
        with_states: Sequence[ScheduledRequest],
        sums: Tensor,
        head: ScoreHead | None,
    ) -> None:
        """Begin the copy to the host.

        Args:
            items: All shares of pooled requests in the step.
            with_states: Those with needed states, in the order of `sums`.
            sums: [len(with_states), hidden], the sum of each one's states, on the step's device.
            head: Makes scores of a pooled state; None if the model has none.
        """
        self._items, self._with_states, self._head = items, with_states, head
        is_cuda = sums.device.type == "cuda"
        self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=is_cuda)
        self._sums.copy_(sums, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def collect(self) -> list[int | None]:
        """Wait for the states, and finish the vectors of the requests that are complete.

        Returns:
            For each pooled request whose last token the step computed, `VECTOR_TOKEN`; None if its
            vector is not finite.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        sums: NDArray[np.float64] = self._sums.numpy().astype(np.float64)
        for item, summed in zip(self._with_states, sums, strict=True):
            pooling = item.request.pooling
            assert pooling is not None
            start = item.num_computed_tokens
            state = pooling.put(start, start + item.num_new_tokens, summed)
            if state is not None:
                pooling.vector = finish_vector(state, pooling, self._head)
        return [
            VECTOR_TOKEN if _is_finite(item.request.pooling) else None
            for item in self._items
            if item.needs_sample
        ]


class Pooler:
    """Sums the final states of a step's pooled requests."""

    def __init__(self, head: ScoreHead | None) -> None:
        """Make a pooler.

        Args:
            head: The model's classification head; None if it has none.
        """
        self._head = head

    def launch(self, states: Tensor | None, batch: ScheduledBatch) -> PooledStep | None:
        """Queue the states of a step for the host.

        Args:
            states: [num_states, hidden] from the model, for each pooled request of the batch the
                states that it needs; None if there are none.
            batch: The step.

        Returns:
            None if no pooled request is in the batch.
        """
        items = batch.pooled
        if not items:
            return None
        with_states = [item for item in items if item.pooled_positions]
        counts = [len(item.pooled_positions) for item in with_states]
        sums = torch.empty(0, 0) if states is None else _sum_by_request(states, counts)
        return PooledStep(items, with_states, sums, self._head)


def finish_vector(
    state: NDArray[np.float32], pooling: PooledStates, head: ScoreHead | None
) -> NDArray[np.float32]:
    """Return the vector or the scores that a request's pooled state makes."""
    params = pooling.params
    if params.task == "embed":
        return finish_embedding(state, params)
    assert head is not None, "the intake has refused scores of a model without a head"
    return finish_scores(head.outputs(state), params.activation or head.activation)


def _sum_by_request(states: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the sums of consecutive rows, [len(counts), hidden] float32 or float64."""
    if all(count == 1 for count in counts):
        return states.float()
    if states.device.type == "cpu":  # numpy, because torch's threads would spin afterwards
        rows = states.float().numpy()
        starts = np.cumsum([0, *counts[:-1]])
        return torch.from_numpy(np.add.reduceat(rows, starts, axis=0, dtype=np.float64))
    # One by one: an indexed sum on a GPU adds in another order each time.
    return torch.stack([rows.sum(0, dtype=torch.float32) for rows in states.split(list(counts))])


def _is_finite(pooling: PooledStates | None) -> bool:
    vector = None if pooling is None else pooling.vector
    return vector is not None and bool(np.isfinite(vector).all())
