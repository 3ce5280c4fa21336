"""Runs a model's steps: no gradients, logits where the sampler may change them."""

from __future__ import annotations

import torch
from torch import Tensor

from .kv_cache import KVCache
from .model import Model
from .step_inputs import StepInputs


class ModelRunner:
    """Owns the way from a step's inputs to its logits, and the buffer that they lie in."""

    def __init__(self, model: Model, kv_cache: KVCache, device: torch.device | str) -> None:
        """Bring a model and its cache together.

        Args:
            model: Computes the steps.
            kv_cache: Holds the keys and values between steps.
            device: Where both are.
        """
        self._model = model
        self._kv_cache = kv_cache
        self._logits = torch.empty(0, model.config.vocab_size, dtype=torch.float32, device=device)

    def run(self, inputs: StepInputs) -> Tensor:
        """Compute one step.

        Returns:
            [num_samples, vocab_size] float32; the caller may change it, and the next `run`
            overwrites it.
        """
        num_samples = len(inputs.sample_rows)
        if num_samples > len(self._logits):
            # Made outside inference mode, so that the sampler may change it in place outside too.
            # Kept, because fresh memory of this size costs a page fault for every 4 KiB.
            self._logits = torch.empty(
                num_samples,
                self._logits.shape[1],
                dtype=torch.float32,
                device=self._logits.device,
            )
        logits = self._logits[:num_samples]
        with torch.inference_mode():
            self._model.forward(inputs, self._kv_cache, logits)
        return logits
