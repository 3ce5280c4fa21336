"""The native decoder of the Llama family: plain weights, our kernels, one flattened batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.dispatch import Backend
from batchmill.kernels.linear import Linear, PackedLinear, make_linear
from batchmill.kernels.paged_attention import paged_attention
from batchmill.kernels.paged_attention_plan import AttentionPlan
from batchmill.kernels.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.rope import apply_rope
from batchmill.kernels.silu_and_mul import silu_and_mul
from batchmill.kernels.write_kv import write_kv

from .fused_layers import FusedLayers, can_fuse
from .kv_cache import KVCache
from .model_config import ModelConfig
from .rotary import cos_sin, inverse_frequencies
from .step_inputs import StepInputs
from .weights import DecoderWeights, LayerWeights

#: Makes a matrix multiplication of a weight [out, in] and a bias.
LinearFactory = Callable[[Tensor, Tensor | None], Linear]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer, ready to run; see `LayerWeights` for the sizes."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear

    @classmethod
    def build(cls, weights: LayerWeights, linear: LinearFactory) -> DecoderLayer:
        """Turn weights into a layer."""
        return cls(
            input_norm=weights.input_norm,
            qkv=linear(weights.qkv, weights.qkv_bias),
            q_norm=weights.q_norm,
            k_norm=weights.k_norm,
            output=linear(weights.output, weights.output_bias),
            post_attention_norm=weights.post_attention_norm,
            gate_up=linear(weights.gate_up, weights.gate_up_bias),
            down=linear(weights.down, weights.down_bias),
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What every layer needs of one step."""

    inputs: StepInputs
    cos: Tensor  # [num_tokens, head_dim / 2] float32
    sin: Tensor
    plan: AttentionPlan


class DecoderModel:
    """Owns a decoder's weights and computes logits from a step's inputs and the KV cache.

    Attributes:
        config: Sizes and features.
        dtype: Of weights, activations and the KV cache.
        device: Where the weights are.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        *,
        linear: LinearFactory | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Make a model of weights.

        Args:
            config: Sizes and features.
            weights: As `load_weights` gives them.
            linear: Makes the matrix multiplications; None takes `make_linear` for `backend`, and
                all layers in one C++ call where that is possible.
            backend: The face of our kernels, see `batchmill.kernels.dispatch`.
        """
        self.config = config
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._embedding = weights.embedding
        self._fused: FusedLayers | None = None
        self._layers: list[DecoderLayer] = []
        if linear is None and backend in ("auto", "cpp") and can_fuse(weights):
            self._fused = FusedLayers(config, weights)
        linear = linear or partial(make_linear, backend=backend)
        if self._fused is None:
            self._layers = [DecoderLayer.build(layer, linear) for layer in weights.layers]
        self._final_norm = weights.final_norm
        self._head = linear(weights.head, None)
        self._backend = backend
        self._frequencies = inverse_frequencies(config.rope, config.head_dim).to(self.device)

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> None:
        """Run one step: write its keys and values, and compute the logits that are wanted.

        Args:
            inputs: The step's batch.
            kv_cache: Read and written.
            logits: [num_samples, vocab_size] float32, contiguous, written.
        """
        cos, sin = cos_sin(inputs.positions, self._frequencies)
        if self._fused is not None:
            x, residual = self._fused.run(inputs, kv_cache, cos, sin)
        else:
            residual = F.embedding(inputs.input_ids, self._embedding)  # [num_tokens, hidden]
            step = _Step(inputs, cos, sin, self._plan(inputs, kv_cache))
            x, residual = self._run_layers(step, kv_cache, residual)
        if not len(x):
            return
        eps, backend = self.config.rms_norm_eps, self._backend
        x = add_rms_norm(x, residual, self._final_norm, eps, backend=backend)
        if isinstance(self._head, PackedLinear):
            self._head(x, out=logits)
        else:
            logits.copy_(self._head(x))

    def _run_layers(
        self, step: _Step, kv_cache: KVCache, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the last layer adds and what it adds it to, for the rows that sample."""
        eps, backend, inputs = self.config.rms_norm_eps, self._backend, step.inputs
        x = None
        for layer, (k_cache, v_cache) in zip(self._layers, kv_cache.layers, strict=True):
            if x is None:
                normed = rms_norm(residual, layer.input_norm, eps, backend=backend)
            else:
                normed = add_rms_norm(x, residual, layer.input_norm, eps, backend=backend)
            x = self._attend(layer, normed, k_cache, v_cache, step)
            if layer is self._layers[-1] and len(inputs.sample_rows) < len(x):
                # Past the last attention rows are independent, and only these lead to a token.
                x = x.index_select(0, inputs.sample_rows)
                residual = residual.index_select(0, inputs.sample_rows)
                if not len(x):
                    break
            normed = add_rms_norm(x, residual, layer.post_attention_norm, eps, backend=backend)
            x = layer.down(silu_and_mul(layer.gate_up(normed), backend=backend))
        assert x is not None, "a model has at least one layer"
        return x, residual

    def _plan(self, inputs: StepInputs, kv_cache: KVCache) -> AttentionPlan:
        return AttentionPlan(
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            kv_cache.layers[0][0],
            window=self.config.sliding_window,
        )

    def _attend(
        self, layer: DecoderLayer, x: Tensor, k_cache: Tensor, v_cache: Tensor, step: _Step
    ) -> Tensor:
        """Attention of one layer, [num_tokens, hidden] to [num_tokens, hidden]."""
        config, inputs, backend = self.config, step.inputs, self._backend
        first_value = config.num_heads + config.num_kv_heads
        # [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: queries, keys, values
        heads = layer.qkv(x).view(len(x), -1, config.head_dim)
        queries, keys = heads[:, : config.num_heads], heads[:, config.num_heads : first_value]
        if layer.q_norm is not None and layer.k_norm is not None:
            eps = config.rms_norm_eps
            queries.copy_(rms_norm(queries, layer.q_norm, eps, backend=backend))
            keys.copy_(rms_norm(keys, layer.k_norm, eps, backend=backend))
        apply_rope(heads[:, :first_value], step.cos, step.sin, backend=backend)
        write_kv(
            keys, heads[:, first_value:], k_cache, v_cache, inputs.slot_mapping, backend=backend
        )
        attended = paged_attention(
            queries,
            k_cache,
            v_cache,
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            config.head_dim**-0.5,
            window=config.sliding_window,
            plan=step.plan,
            backend=backend,
        )
        return layer.output(attended.view(len(x), -1))
