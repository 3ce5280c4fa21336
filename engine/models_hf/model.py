"""A model that transformers computes, with our attention over our paged KV cache."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.model_length import longest_length
from batchmill.engine.step.step_inputs import StepInputs

from .attention import CurrentStep, PagedLayer
from .inspection import inspect_attention


class TransformersModel:
    """Owns a transformers model whose attention runs over our cache.

    Attributes:
        config: Sizes that the cache and the scheduler need.
        dtype: Number format of weights, activations and the KV cache.
        device: Device of the weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Attach our paged layers to the attention modules; our attention is not in use yet.

        Args:
            model: In evaluation mode, on its device.

        Raises:
            UnsupportedModelError: our attention cannot serve the model; the message says why.
        """
        self._model = model
        self.dtype, self.device = model.dtype, model.device
        calls = inspect_attention(model)
        self._step = CurrentStep()
        for index, call in enumerate(calls):
            PagedLayer(index, call.window, self._step).bind(call.module)
        parameters = inspect.signature(model.forward).parameters
        self._keeps_rows = "logits_to_keep" in parameters
        self._states = FinalStates(model)
        self.config = ModelShape(
            architecture=type(model).__name__,
            vocab_size=_vocab_size(model),
            num_layers=len(calls),
            num_kv_heads=calls[0].key_shape[1],
            head_dim=calls[0].key_shape[3],
            max_position_embeddings=longest_length(model.config),
            state_size=self._states.size,
        )

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        """Run one step; see `Model.forward`."""
        self._step.begin(inputs, kv_cache)
        logit_rows = inputs.sample_rows[: inputs.num_logits]
        rows = {"logits_to_keep": logit_rows} if self._keeps_rows else {}
        try:
            computed: Tensor = self._model(
                input_ids=inputs.input_ids[None],
                position_ids=inputs.positions[None],
                use_cache=False,
                **rows,
            ).logits[0]
        finally:
            self._step.end()
        if not self._keeps_rows:
            computed = computed.index_select(0, logit_rows)
        logits.copy_(computed)
        states = self._states.take()
        if not inputs.num_states:
            return None
        assert states is not None, "the intake refuses pooled requests without states"
        return states[0].index_select(0, inputs.sample_rows[inputs.num_logits :])


class FinalStates:
    """Keeps the output of a model's layers, after the last norm, until it is taken."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Watch a model's layers; `size` is 0 if they are not a module of their own."""
        #: Numbers of a state; 0 if the states are not shown.
        self.size = 0
        self._states: Tensor | None = None
        layers: Any = model.base_model
        size = getattr(model.config.get_text_config(), "hidden_size", 0)
        head: Any = model.get_output_embeddings()
        # Some models project the states before the head: then these are not what it sees.
        if layers is not model and head is not None and head.weight.shape[-1] == size:
            self.size = int(size)
            layers.register_forward_hook(self._keep)

    def take(self) -> Tensor | None:
        """Return the states of the step, [1, num_tokens, hidden], and forget them."""
        states, self._states = self._states, None
        return states

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        states = getattr(output, "last_hidden_state", None)
        self._states = output[0] if states is None else states


def _vocab_size(model: PreTrainedModel) -> int:
    head: Any = model
    return int(head.get_output_embeddings().weight.shape[0])
