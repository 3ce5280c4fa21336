"""All layers of a decoder in one C++ call, with packed weights, on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchmill.engine.memory.host_memory import return_free_memory
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.cpu.library import cpp_is_usable
from batchmill.kernels.ops.decoder_layers import (
    CppAdapter,
    CppDecoder,
    CppDecoderSizes,
    CppLayer,
)
from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.linear import is_packable

from .features import put_features
from .model_config import ModelConfig
from .quantized_linears import PackedFactory, packed_linear
from .weights import DecoderWeights, DenseWeights, LayerWeights


def can_fuse(config: ModelConfig, weights: DecoderWeights, quantization: str | None = None) -> bool:
    """Return whether the C++ layers compute this decoder, with these weights on this machine.

    Args:
        config: Sizes and features.
        weights: The decoder's weights.
        quantization: "int8" or "int4", which every CPU multiplies, "fp8", which none does, or
            None.
    """
    dtype = weights.embedding.dtype
    if weights.embedding.device.type != "cpu" or quantization == "fp8" or not cpp_is_usable():
        return False
    if not _is_plain(config, dtype) or not all(map(_is_dense, weights.layers)):
        return False
    if quantization in ("int8", "int4"):
        return dtype in (torch.float32, torch.bfloat16)
    return all(map(_is_packable, weights.layers))


def _is_plain(config: ModelConfig, dtype: torch.dtype) -> bool:
    """Return whether the C++ layers support all features of a decoder."""
    return (
        len(config.attention_kinds) == 1
        and config.attention_scale == config.head_dim**-0.5
        and config.activation == "silu"
        and config.embedding_scale == 1.0
        and not config.output_norms
        and config.input_norms
        and not config.qk_norm_spans_heads
        and not config.qk_norm_after_rope
        and not config.attention_sinks
        and config.residual_scale == 1.0
        and not config.attention_kinds[0].query_growth
        and (not config.norm_offset or dtype == torch.float32)
    )


def _is_dense(layer: LayerWeights) -> bool:
    return isinstance(layer.feed_forward, DenseWeights)


def _is_packable(layer: LayerWeights) -> bool:
    assert isinstance(layer.feed_forward, DenseWeights), "can_fuse has checked this"
    gate_up = layer.feed_forward.gate_up
    if isinstance(gate_up, Fp8Weight):
        return False
    gate, up = gate_up.chunk(2)
    matrices = (layer.qkv, layer.output, gate, up, layer.feed_forward.down)
    return all(isinstance(each, Tensor) and is_packable(each) for each in matrices)


class FusedLayers:
    """Owns a decoder's packed layers; the weights that they were made from can be freed."""

    def __init__(
        self, config: ModelConfig, weights: DecoderWeights, quantization: str | None = None
    ) -> None:
        """Pack every layer.

        Args:
            config: Sizes and features.
            weights: Weights for which `can_fuse` is true; the layers are taken out one by one, so
                that only one exists twice.
            quantization: "int8", "int4", or None for weights in their dtype.
        """
        linear = packed_linear(quantization, has_stored_groups=weights.has_stored_groups)
        self._embedding = weights.embedding
        # As 16-bit integers, because numpy has no bfloat16.
        self._embedding_rows = weights.embedding.view(torch.int16).numpy()
        layers: list[CppLayer] = []
        while weights.layers:
            layers.append(_pack(weights.layers.pop(0), linear))
            return_free_memory()
        self._layers = tuple(layers)
        (attention,) = config.attention_kinds
        self._sizes = CppDecoderSizes(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rotary_dim=int(config.head_dim * attention.rope.partial_rotary_factor),
            window=attention.window,
            eps=config.rms_norm_eps,
        )
        self._bound: tuple[KVCache, CppDecoder] | None = None

    @property
    def layers(self) -> tuple[CppLayer, ...]:
        """The packed layers, to run them op by op."""
        return self._layers

    def embed(self, inputs: StepInputs) -> Tensor:
        """Look up a step's embeddings, [num_tokens, hidden]."""
        rows = np.take(self._embedding_rows, inputs.input_ids.numpy(), axis=0)
        return put_features(torch.from_numpy(rows).view(self._embedding.dtype), inputs)

    def run_layers(
        self, inputs: StepInputs, kv_cache: KVCache, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look up a step's embeddings and run all layers over them.

        Nothing here, nor in the rest of a greedy step, is a parallel region of torch: after one,
        OpenMP's threads spin for some 5 ms and take cores from the kernels' own threads. Measured
        on 2 busy cores, one sequence: 28 to 32 ms per step, and 10.5 ms if those threads sleep at
        once (OMP_WAIT_POLICY=PASSIVE).

        Args:
            inputs: The step's batch.
            kv_cache: The cache, read and written.
            cos: [num_tokens, rotary_dim / 2] float32.
            sin: As `cos`.

        Returns:
            The last layer's output and residual, [num_samples, hidden] each.
        """
        if self._bound is None or self._bound[0] is not kv_cache:
            self._bound = kv_cache, CppDecoder(self._layers, self._sizes, kv_cache.layers)
        return self._bound[1].run_layers(
            self.embed(inputs),
            cos,
            sin,
            inputs.slot_mapping,
            inputs.block_tables,
            inputs.cu_seqlens_q,
            inputs.seq_lens,
            inputs.sample_rows,
            [CppAdapter(each.owner, each.token_rows, each.sample_rows) for each in inputs.adapters],
        )


def _pack(layer: LayerWeights, linear: PackedFactory) -> CppLayer:
    network = layer.feed_forward
    assert isinstance(network, DenseWeights), "can_fuse has checked this"
    assert layer.input_norm is not None, "can_fuse has checked this"
    assert layer.post_attention_norm is not None, "can_fuse has checked this"
    assert not isinstance(network.gate_up, Fp8Weight), "can_fuse has checked this"
    gate, up = network.gate_up.chunk(2)
    gate_bias, up_bias = (
        (None, None) if network.gate_up_bias is None else network.gate_up_bias.chunk(2)
    )
    return CppLayer(
        input_norm=layer.input_norm,
        qkv=linear([layer.qkv], [layer.qkv_bias]),
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        output=linear([layer.output], [layer.output_bias]),
        post_attention_norm=layer.post_attention_norm,
        gate_up=linear([gate, up], [gate_bias, up_bias]),
        down=linear([network.down], [network.down_bias]),
    )
