"""One layer of the native decoder: its operations, built from weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from batchmill.kernels.ops.decoder_layers import CppLayer
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.gated_activation import silu_and_mul
from batchmill.kernels.ops.linear import Linear

from .feed_forward import FeedForward, GatedNetwork, LinearFactory, build_feed_forward
from .head_norms import HeadNorms
from .model_config import ModelConfig
from .weights import LayerWeights


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The operations of one layer; see `LayerWeights` for the sizes."""

    #: Index of its kind in `ModelConfig.attention_kinds`.
    attention_kind: int
    input_norm: Tensor | None
    qkv: Linear
    head_norms: HeadNorms
    output: Linear
    attention_output_norm: Tensor | None
    post_attention_norm: Tensor | None
    feed_forward: FeedForward
    feed_forward_output_norm: Tensor | None
    sinks: Tensor | None = None

    @classmethod
    def build(
        cls,
        weights: LayerWeights,
        config: ModelConfig,
        attention_kind: int,
        linear: LinearFactory,
        backend: Backend,
        *,
        summed: LinearFactory | None,
        is_plain: bool,
        is_fp8: bool,
    ) -> DecoderLayer:
        """Build a layer from weights.

        For `summed`, which also makes the product of attention's output, and for the flags see
        `build_feed_forward`.
        """
        return cls(
            attention_kind=attention_kind,
            input_norm=weights.input_norm,
            qkv=linear(weights.qkv, weights.qkv_bias),
            head_norms=HeadNorms.build(weights.q_norm, weights.k_norm, config),
            output=(summed or linear)(weights.output, weights.output_bias),
            attention_output_norm=weights.attention_output_norm,
            post_attention_norm=weights.post_attention_norm,
            feed_forward=build_feed_forward(
                weights.feed_forward,
                config,
                linear,
                backend,
                summed=summed,
                is_plain=is_plain,
                is_fp8=is_fp8,
            ),
            feed_forward_output_norm=weights.feed_forward_output_norm,
            sinks=weights.sinks,
        )


def fused_layer(packed: CppLayer, backend: Backend) -> DecoderLayer:
    """Return the operations of a layer that the C++ layers run in one call, to run them singly."""
    return DecoderLayer(
        attention_kind=0,
        input_norm=packed.input_norm,
        qkv=packed.qkv,
        head_norms=HeadNorms(packed.q_norm, packed.k_norm),
        output=packed.output,
        attention_output_norm=None,
        post_attention_norm=packed.post_attention_norm,
        feed_forward=GatedNetwork(
            packed.gate_up.ungated(), packed.down, partial(silu_and_mul, backend=backend)
        ),
        feed_forward_output_norm=None,
    )
