"""The interface of a model, native or not, as the steps use it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.step.step_inputs import StepInputs


class Model(Protocol):
    """Computes logits from a step's inputs and the KV cache."""

    @property
    def config(self) -> ModelShape:
        """Sizes that the cache and the scheduler need."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights, activations and the KV cache."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        """Run one step: write its keys and values, and compute the requested logits.

        Args:
            inputs: The step's batch.
            kv_cache: The cache, read and written.
            logits: [num_logits, vocab_size] float32, contiguous, written.

        Returns:
            [num_states, hidden], the final states of the last rows of `inputs.sample_rows`, after
            the last norm; None if `inputs.num_states` is 0.
        """
