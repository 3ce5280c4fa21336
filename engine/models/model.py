"""What the runner asks of a model, whoever computes it."""

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
        """What it looks like from outside."""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and the KV cache."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> None:
        """Run one step: write its keys and values, and compute the logits that are wanted.

        Args:
            inputs: The step's batch.
            kv_cache: Read and written.
            logits: [num_samples, vocab_size] float32, contiguous, written.
        """
