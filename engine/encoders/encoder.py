"""The encoder: final states of whole texts, over one flattened batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.linear import Linear, make_linear

from .attention import TextGroup, text_groups
from .config import EncoderConfig
from .weights import Affine, EncoderLayerWeights, EncoderWeights

#: Distances from here on share one bias.
_MAX_DISTANCE = 128
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Linear
    output: Linear
    attention_norm: Affine
    up: Linear
    down: Linear
    output_norm: Affine

    @classmethod
    def of(cls, weights: EncoderLayerWeights) -> _Layer:
        def linear(affine: Affine) -> Linear:
            # Hundreds of rows at once: in float32 torch's own product is faster, and its threads
            # are those of attention.
            is_float32 = affine.weight.dtype == torch.float32
            backend: Backend = "reference" if is_float32 else "auto"
            return make_linear(affine.weight, affine.bias, backend=backend)

        return cls(
            linear(weights.qkv),
            linear(weights.output),
            weights.attention_norm,
            linear(weights.up),
            linear(weights.down),
            weights.output_norm,
        )


class EncoderModel:
    """Owns an encoder's weights and computes final states; see `Model`.

    Every text of a step is whole: its tokens see each other and no others. Matrices multiply all
    tokens of the step at once, so there is no padding; in attention, texts of similar lengths are
    padded to the longest.

    Attributes:
        config: Sizes and features.
        dtype: Number format of weights and activations.
        device: Device of the weights.

    Source: BERT, Devlin et al. 2019; MPNet's biases by distance, Song et al. 2020, as in T5.
    """

    def __init__(self, config: EncoderConfig, weights: EncoderWeights) -> None:
        """Build a model from weights; its layers are taken out of them."""
        self.config = config
        self.dtype, self.device = weights.tokens.dtype, weights.tokens.device
        self._tokens, self._positions = weights.tokens, weights.positions
        self._token_types = weights.token_types
        self._embedding_norm = weights.embedding_norm
        self._relative_bias = weights.relative_bias
        self._activation = _ACTIVATIONS[config.activation]
        self._layers: list[_Layer] = []
        while weights.layers:
            self._layers.append(_Layer.of(weights.layers.pop(0)))

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        """Run one step of whole texts; there are no logits. See `Model.forward`."""
        x = self._embed(inputs)
        groups = text_groups(inputs.cu_seqlens_q.tolist(), self.device)
        bias = self._bias(max(group.rows.shape[1] for group in groups))
        for layer in self._layers:
            attended = self._attend(layer.qkv(x), groups, bias)
            x = self._norm(x + layer.output(attended), layer.attention_norm)
            x = self._norm(x + layer.down(self._activation(layer.up(x))), layer.output_norm)
        if not inputs.num_states:
            return None
        return x.index_select(0, inputs.sample_rows[inputs.num_logits :])

    def _embed(self, inputs: StepInputs) -> Tensor:
        """Return the sum of the embeddings of token, position and type, [num_tokens, hidden]."""
        x = F.embedding(inputs.input_ids, self._tokens)
        x = x + F.embedding(inputs.positions + self.config.first_position, self._positions)
        if self._token_types is not None and inputs.token_types is None:
            x = x + self._token_types[0]
        elif self._token_types is not None and inputs.token_types is not None:
            # Of a model with one type, both texts of a pair have that one.
            types = inputs.token_types.clamp(max=len(self._token_types) - 1)
            x = x + F.embedding(types, self._token_types)
        return self._norm(x, self._embedding_norm)

    def _norm(self, x: Tensor, affine: Affine) -> Tensor:
        size = (self.config.hidden_size,)
        return F.layer_norm(x, size, affine.weight, affine.bias, self.config.layer_norm_eps)

    def _attend(self, qkv: Tensor, groups: Sequence[TextGroup], bias: Tensor | None) -> Tensor:
        """Attend within each text, [num_tokens, hidden] from [num_tokens, 3 * hidden]."""
        parts = qkv.view(len(qkv), 3, self.config.num_heads, -1)
        attended = torch.empty_like(parts[:, 0])
        for group in groups:
            group.attend(parts, bias, attended)
        return attended.flatten(1)

    def _bias(self, length: int) -> Tensor | None:
        """Return what attention adds by distance, [num_heads, length, length]; None if nothing."""
        if self._relative_bias is None:
            return None
        positions = torch.arange(length, device=self.device)
        buckets = _bucket(positions[None, :] - positions[:, None], self.config.num_buckets)
        return F.embedding(buckets, self._relative_bias).permute(2, 0, 1).contiguous()


def _bucket(distance: Tensor, num_buckets: int) -> Tensor:
    """Return the bucket of each distance: near ones have their own, far ones share by logarithm.

    Source: T5, Raffel et al. 2020, section 2.1.
    """
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    ratio = torch.log(far.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact)
    shared = (exact + (ratio * (half - exact)).to(torch.int64)).clamp(max=half - 1)
    return torch.where(far < exact, far, shared) + half * (distance > 0)
