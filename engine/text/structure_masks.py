"""Masks of the tokens that may come next in structured outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .structure import Structure

if TYPE_CHECKING:
    import llguidance


class StructureMasks:
    """Computes on another thread which tokens may come next, while the model computes."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._thread: ThreadPoolExecutor | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._pending: Future[NDArray[np.int32]] | None = None

    def start(self, structures: Sequence[Structure]) -> None:
        """Start to compute the masks of structures; these must not change until `take`."""
        self.discard()
        if not structures:
            return
        if self._thread is None:
            import llguidance

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="structure-masks")
            # The model needs most of the cores at the same time.
            self._executor = llguidance.LLExecutor(max(1, (os.cpu_count() or 1) // 4))
        self._pending = self._thread.submit(self._fill, structures)

    def take(self) -> NDArray[np.int32]:
        """Return the masks: one bit per token, [num_structures, ceil(vocab_size / 32)] int32."""
        assert self._pending is not None, "start() was not called for this step"
        pending, self._pending = self._pending, None
        return pending.result()

    def discard(self) -> None:
        """Wait for masks that were not taken because their step failed."""
        if self._pending is not None:
            self.take()

    def _fill(self, structures: Sequence[Structure]) -> NDArray[np.int32]:
        from llguidance.numpy import fill_next_token_bitmask_par

        masks = np.zeros((len(structures), self._num_words), dtype=np.int32)
        assert self._executor is not None
        matchers = [(each.matcher, row) for row, each in enumerate(structures)]
        fill_next_token_bitmask_par(self._executor, matchers, masks)
        for row, each in enumerate(structures):
            if each.matcher.is_error():
                self._fill_alone(masks, row, each)
        return masks

    def _fill_alone(self, masks: NDArray[np.int32], row: int, structure: Structure) -> None:
        """Compute a mask whose lexer has failed with one of its own; if that fails, it is empty."""
        from llguidance.numpy import fill_next_token_bitmask

        if structure.leave_shared_lexer():
            fill_next_token_bitmask(structure.matcher, masks, row)
        if structure.matcher.is_error():
            masks[row] = 0
